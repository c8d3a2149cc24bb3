"""What must not change an answer, for every strategy, mode and variant over the families that run it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import numpy as np
import pytest

from diffulex_core.outputs import ReqTrajectory
from diffulex_core.protocols import GuidedReq
from diffulex_core.types import Canvas, CompletionReason
from tests.integration.matrix import CASES, PAGE, VARIANTS, Case, Checkpoints, host, prompt, recipes
from tests.integration.watched import MOST_STEPS, Watched, tokens

EACH = pytest.mark.parametrize("case", CASES, ids=str)


class Kit:
    """Engines for cases, and the answers that each request gets with nobody else around."""

    def __init__(self) -> None:
        self.checkpoints = Checkpoints()
        self._alone: dict[str, list[ReqTrajectory]] = {}

    def engine(self, case: Case, **settings: Any) -> Watched:
        return Watched(case, self.checkpoints, **settings)

    def alone(self, case: Case) -> list[ReqTrajectory]:
        if str(case) not in self._alone:
            with self.engine(case, enable_prefix_caching=False) as quiet:
                answers = [quiet.serve([text], [asked])[0] for text, asked in zip(case.prompts, case.asks, strict=True)]
            self._alone[str(case)] = answers
        return self._alone[str(case)]


@pytest.fixture(scope="module")
def kit() -> Iterator[Kit]:
    made = Kit()
    yield made
    made.checkpoints.close()


def test_every_strategy_in_every_mode_is_in_the_matrix() -> None:
    assert set(VARIANTS) == recipes(host())
    assert {case.recipe for case in CASES} == set(VARIANTS), "a strategy fits no family"


def test_every_variant_runs_somewhere() -> None:
    wanted = {(recipe, name) for recipe, variants in VARIANTS.items() for name in variants}
    assert {(case.recipe, case.variant_name) for case in CASES} == wanted


@EACH
def test_a_batch_answers_as_each_request_alone(case: Case, kit: Kit) -> None:
    alone = kit.alone(case)
    with kit.engine(case, enable_prefix_caching=False) as ready:
        together = ready.serve(case.prompts, case.asks)
    assert tokens(together) == tokens(alone)
    assert [each.nfe for each in together] == [each.nfe for each in alone]
    assert [each.logprobs for each in together] == [each.logprobs for each in alone]
    assert len(set(tokens(alone))) == len(alone)


@pytest.mark.parametrize(
    "settings",
    [{"page_size": 4, "max_num_reqs": 2}, {"page_size": 32, "max_num_reqs": 1, "max_logits_tokens": 2}],
    ids=["small pages, two at a time", "large pages, one at a time, two rows of logits"],
)
@EACH
def test_machinery_changes_no_answer(case: Case, settings: dict[str, Any], kit: Kit) -> None:
    with kit.engine(case, **settings) as ready:
        assert tokens(ready.serve(case.prompts, case.asks)) == tokens(kit.alone(case))


@EACH
def test_the_smallest_budget_serves_the_same_answers_and_cuts_prompts_where_that_is_allowed(
    case: Case, kit: Kit
) -> None:
    with kit.engine(case) as roomy:
        most = [roomy.request(*each).most_rows() for each in zip(case.prompts, case.asks, strict=True)]
        least = max(*most, 2 * roomy.parts.req_context.pattern.block_size)
    with kit.engine(case, max_num_batched_tokens=least) as tight:
        answers = tight.serve(case.prompts, case.asks)
    assert tokens(answers) == tokens(kit.alone(case))
    cut = any(step.is_prefill for answer in answers for step in answer.trajectory)
    assert cut == case.variant.chunks


@EACH
def test_an_answer_survives_a_page_pool_for_hardly_more_than_one_request(case: Case, kit: Kit) -> None:
    with kit.engine(case) as roomy:
        requests = [roomy.request(*each) for each in zip(case.prompts, case.asks, strict=True)]
    most = max(-(-each.most_slots() // 4) * sequences(each) for each in requests)
    with kit.engine(case, page_size=4, num_pages=most + 2) as small:
        answers = small.serve(case.prompts, case.asks)
    # A canvas holds all its pages from the start, so it waits for them instead.
    assert (sum(answer.preemptions for answer in answers) > 0) == (not case.variant.canvas)
    assert [answer.preemptions for answer in answers] == [small.lost[answer.req_id] for answer in answers]
    assert [len(answer.token_ids) for answer in answers] == [len(answer.token_ids) for answer in kit.alone(case)]
    if case.variant.resumes:
        assert tokens(answers) == tokens(kit.alone(case))


@EACH
def test_an_answer_survives_losing_its_pages_at_any_step(case: Case, kit: Kit) -> None:
    with kit.engine(case) as ready:
        ids = [ready.add(*each) for each in zip(case.prompts, case.asks, strict=True)]
        before: dict[int, Canvas] = {}
        while ready.step() is not None:
            victim = ids[ready.steps % len(ids)]
            if ready.preempt(victim) and victim not in before:
                before[victim] = ready.engine.peek(victim)[0]
            assert ready.steps < MOST_STEPS
        answers = [ready.records[each] for each in ids]
    assert len(before) >= 2
    for request, answer, whole in zip(ids, answers, kit.alone(case), strict=True):
        assert len(answer.token_ids) == len(whole.token_ids)
        if case.variant.resumes:
            assert answer.token_ids == whole.token_ids
        elif request in before:
            canvas, known = before[request], len(whole.token_ids)
            told = np.flatnonzero(canvas.decided[:known])
            assert (canvas.tokens[told] == np.array(whole.token_ids)[told]).all()


@EACH
def test_an_aborted_request_leaves_the_others_and_its_pages_alone(case: Case, kit: Kit) -> None:
    alone, at = kit.alone(case), 2
    gone = [number for number in (0, 3) if alone[number].nfe > at]
    with kit.engine(case) as ready:
        answers = ready.serve(case.prompts, case.asks, aborts=[(at, number) for number in gone])
        assert ready.kv.num_free_pages == ready.kv.num_pages
    assert gone
    for number, (answer, whole) in enumerate(zip(answers, alone, strict=True)):
        if number not in gone:
            assert answer.token_ids == whole.token_ids
            continue
        assert (answer.completion_reason, answer.nfe) == (CompletionReason.ABORTED, at)
        if not case.variant.revises:
            assert answer.token_ids == whole.token_ids[: len(answer.token_ids)]


@EACH
def test_a_prompt_that_was_served_before_is_read_from_its_pages(case: Case, kit: Kit) -> None:
    alone = kit.alone(case)
    with kit.engine(case) as ready:
        first, again = (ready.serve(case.prompts, case.asks) for _ in range(2))
    assert tokens(first) == tokens(again) == tokens(alone)
    shared = 0 if case.variant.shares == "nothing" else PAGE
    assert [answer.cached_tokens for answer in first] == [0] * len(alone)
    assert [answer.cached_tokens for answer in again] == [len(text) // PAGE * shared for text in case.prompts]


@EACH
def test_a_second_turn_reads_the_pages_of_the_first(case: Case, kit: Kit) -> None:
    """A page serves others once it is stored for good; the last blocks of an answer never are."""
    longer = [attrs.evolve(asked, **case.variant.longer, stop_token_ids=()) for asked in case.asks]
    with kit.engine(case) as ready:
        first = ready.serve(case.prompts, longer)
        turns = [[*text, *answer.token_ids, *prompt(3, 9)] for text, answer in zip(case.prompts, first, strict=True)]
        second = ready.serve(turns, case.asks)
        running = ready.parts.req_context.pattern.block_size * ready.engine.config.decoding.buffer_size
    with kit.engine(case, enable_prefix_caching=False) as cold:
        assert tokens(second) == tokens(cold.serve(turns, case.asks))
    for text, answer, following in zip(case.prompts, first, second, strict=True):
        if case.variant.shares == "answer":
            assert answer.tokens_committed >= len(answer.token_ids) - 2 * running
            known = len(text) + min(answer.tokens_committed, len(answer.token_ids))
        else:
            known = len(text) if case.variant.shares == "prompt" else 0
        assert following.cached_tokens == known // PAGE * PAGE
    if case.variant.shares == "answer":
        assert sum(answer.cached_tokens for answer in second) >= PAGE * len(second) + sum(map(len, case.prompts))


@pytest.mark.parametrize("case", [case for case in CASES if case.variant.grows], ids=str)
def test_a_smaller_limit_gives_a_prefix(case: Case, kit: Kit) -> None:
    asked = [
        (text, params, whole) for text, params, whole in zip(case.prompts, case.asks, kit.alone(case), strict=True)
    ]
    limited = [(limit, *each) for limit in (1, 4, 8) for each in asked]
    with kit.engine(case) as ready:
        shorter = [attrs.evolve(params, max_tokens=min(limit, params.max_tokens)) for limit, _, params, _ in limited]
        answers = ready.serve([text for _, text, _, _ in limited], shorter)
    for answer, (limit, _, _, whole) in zip(answers, limited, strict=True):
        assert answer.token_ids == whole.token_ids[:limit]
        assert answer.nfe <= whole.nfe


def sequences(request: object) -> int:
    """How many tables of pages it owns."""
    return 2 if isinstance(request, GuidedReq) and request.guided else 1
