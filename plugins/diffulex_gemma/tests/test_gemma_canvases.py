"""What a canvas becomes depends on its request alone: not on company, pages, budgets, caches or interruptions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from diffulex_core.distributed import Communicator
from diffulex_core.errors import PromptTooLong
from diffulex_core.testing.thread_group import together
from diffulex_core.types import CompletionReason
from diffulex_gemma.decision import CanvasDecision
from diffulex_gemma.model import DiffusionGemma
from diffulex_gemma.request import CanvasRequest
from tests.families.canvas_serving import Service, mild_model, options, prompt, request
from tests.families.gemma import CANVAS, load, save

PROMPTS = [prompt(9), prompt(3, 1), prompt(14, 2), prompt(1, 3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("gemma")
    save(mild_model(), path)
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> DiffusionGemma:
    return load(folder)


@pytest.fixture(scope="module")
def alone(model: DiffusionGemma) -> list[list[int]]:
    """The answer to each prompt, served by itself in one page table, without a cache."""
    return [
        Service.of(model, page_size=32, prefix_caching=False).run([request(text, seed=seed)])[0]
        for seed, text in enumerate(PROMPTS)
    ]


def requests_of(max_tokens: int = 10) -> list[CanvasRequest]:
    return [request(text, seed, seed=seed, max_tokens=max_tokens) for seed, text in enumerate(PROMPTS)]


def test_a_request_is_answered_as_if_it_were_alone(model: DiffusionGemma, alone: list[list[int]]) -> None:
    assert Service.of(model).run(requests_of()) == alone


@pytest.mark.parametrize("page_size", [1, 4, 8, 32])
def test_the_size_of_pages_changes_nothing(model: DiffusionGemma, alone: list[list[int]], page_size: int) -> None:
    assert Service.of(model, page_size=page_size, num_pages=256 // page_size).run(requests_of()) == alone


@pytest.mark.parametrize("budget", [CANVAS, CANVAS + 1, 7, 13])
def test_prompts_and_finished_canvases_may_be_encoded_in_pieces(
    model: DiffusionGemma, alone: list[list[int]], budget: int
) -> None:
    service = Service.of(model, budget=budget)
    assert service.run(requests_of()) == alone
    assert max(plan.rows for plan in service.plans) <= budget
    assert any(not window.span.groups for plan in service.plans for window in plan.windows)


def test_pieces_of_the_prompt_are_prefill_and_those_of_a_canvas_are_not(model: DiffusionGemma) -> None:
    service = Service.of(model, budget=CANVAS)
    service.run([request(prompt(9), max_tokens=2 * CANVAS)])
    pieces = [span for plan in service.plans for span in [plan.windows[0].span] if not span.groups]
    assert [(span.start, span.end, span.advances, span.catch_up) for span in pieces] == [
        (0, 4, False, 4),
        (4, 8, False, 4),
        (8, 9, False, 1),
        (9, 13, True, 0),
    ]


@pytest.mark.parametrize("most", [2, 3, 8, 11])
def test_logits_of_a_step_may_be_looked_at_in_parts(model: DiffusionGemma, alone: list[list[int]], most: int) -> None:
    assert Service.of(model, max_logits_tokens=most).run(requests_of()) == alone


def test_a_preempted_canvas_goes_on_where_it_was(model: DiffusionGemma, alone: list[list[int]]) -> None:
    service = Service.of(model, num_pages=8, prefix_caching=False)
    asked = requests_of()
    for each in asked:
        service.scheduler.add(each)
        service.step()
        service.step()
    while service.step():
        pass
    assert [each.output_tokens.tolist() for each in asked] == alone
    assert service.preemptions > 0
    inside = [
        window.span
        for plan in service.plans
        for window in plan.windows
        if window.span.recall and len(window.span.tokens) > CANVAS
    ]
    assert inside, "no canvas was interrupted between two of its steps"


def test_an_abort_leaves_the_others_alone_and_no_beliefs_behind(model: DiffusionGemma, alone: list[list[int]]) -> None:
    service = Service.of(model)
    asked = requests_of()
    for each in asked:
        service.scheduler.add(each)
    for _ in range(3):
        service.step()
    assert service.scheduler.abort(1)
    while service.step():
        pass
    assert [each.output_tokens.tolist() for each in asked if each.request_id != 1] == [alone[0], *alone[2:]]
    assert asked[1].completion is CompletionReason.ABORTED
    assert asked[1].output_tokens.tolist() == []
    believed = next(plan for plan in service.plans if any(window.span.recall for window in plan.windows))
    with pytest.raises(KeyError):
        service.runner.execute(believed)


def test_a_prefix_from_the_cache_gives_the_same_answer(model: DiffusionGemma, alone: list[list[int]]) -> None:
    service = Service.of(model)
    assert service.run([request(PROMPTS[2], 0, seed=2)]) == [alone[2]]
    rows = service.rows()
    assert service.run([request(PROMPTS[2], 1, seed=2)]) == [alone[2]]
    whole_pages = len(PROMPTS[2]) // 4 * 4
    assert service.rows() - rows == rows - whole_pages


def test_a_finished_canvas_is_shared_once_it_is_encoded_and_never_before(model: DiffusionGemma) -> None:
    service = Service.of(model)
    first = request(prompt(8), 0, max_tokens=3 * CANVAS)
    [answer] = service.run([first])
    follow_up = request([*prompt(8), *answer[: 2 * CANVAS], 5, 6], 1)
    service.scheduler.add(follow_up)
    service.step()
    assert service.plans[-1].windows[0].span.start == 8 + 2 * CANVAS
    others = request([*prompt(8), *answer, 5, 6], 2)
    service.scheduler.add(others)
    service.step()
    [window] = [window for window in service.plans[-1].windows if window.request_id == 2]
    assert window.span.start == 8 + 2 * CANVAS, "the last canvas was never encoded"


def test_two_processes_answer_as_one_does(folder: Path, alone: list[list[int]]) -> None:
    def serve(tp: Communicator) -> list[list[int]]:
        return Service.of(load(folder, tp=tp), tp=tp).run(requests_of())

    assert together(2, serve) == [alone, alone]


def test_a_finished_canvas_is_encoded_in_the_forward_that_starts_the_next(model: DiffusionGemma) -> None:
    service = Service.of(model)
    asked = request(prompt(9), max_tokens=3 * CANVAS, settings=options(confidence_threshold=0.0))
    service.run([asked])
    spans = [plan.windows[0].span for plan in service.plans]
    assert len(spans) == asked.nfe == 3 * 4
    assert [len(span.tokens) for span in spans] == [9 + 4, 4, 4, 4, 8, 4, 4, 4, 8, 4, 4, 4]
    assert [span.recall for span in spans] == [False, True, True, True] * 3
    assert [span.remember for span in spans] == [True, True, True, False] * 3
    assert [span.catch_up for span in spans] == [9] + 11 * [0]
    assert all(output.head_rows == CANVAS for output in service.outputs)


@pytest.mark.parametrize("max_tokens", [1, 3, 4, 6])
def test_fewer_tokens_are_a_prefix_of_more(model: DiffusionGemma, alone: list[list[int]], max_tokens: int) -> None:
    asked = requests_of(max_tokens)
    assert Service.of(model).run(asked) == [answer[:max_tokens] for answer in alone]
    assert {each.completion for each in asked} == {CompletionReason.LENGTH_TOKENS}


def test_a_shortened_last_canvas_costs_fewer_rows(model: DiffusionGemma) -> None:
    whole, short = Service.of(model), Service.of(model)
    settings = options(confidence_threshold=0.0)
    [long_answer] = whole.run([request(prompt(9), max_tokens=6, settings=settings)])
    settings = options(confidence_threshold=0.0, shorten_last_canvas=True)
    [answer] = short.run([request(prompt(9), max_tokens=6, settings=settings)])
    assert len(answer) == len(long_answer) == 6
    assert answer[:CANVAS] == long_answer[:CANVAS]
    assert whole.rows() - short.rows() == 4 * (CANVAS - 2)


def test_the_context_may_end_inside_a_canvas(model: DiffusionGemma) -> None:
    asked = request(prompt(9), max_tokens=50, max_model_len=9 + 6)
    [answer] = Service.of(model).run([asked])
    assert len(answer) == 6
    assert asked.completion is CompletionReason.LENGTH_CONTEXT


def test_an_end_token_ends_the_answer_once_its_canvas_is_accepted(
    model: DiffusionGemma, alone: list[list[int]]
) -> None:
    stop = alone[0][5]
    at = alone[0].index(stop)
    asked = request(PROMPTS[0], eos=[stop, 200])
    service = Service.of(model)
    assert service.run([asked]) == [alone[0][:at]]
    assert asked.completion is CompletionReason.STOP_EOS
    assert len(service.plans[-1].windows[0].span.tokens) <= 2 * CANVAS
    assert asked.canvas.decided.all()
    ignoring = request(PROMPTS[0], eos=[stop], ignore_eos=True)
    assert Service.of(model).run([ignoring]) == [alone[0]]
    told = request(PROMPTS[0], stop_token_ids=(stop,))
    assert Service.of(model).run([told]) == [alone[0][:at]]
    assert told.completion is CompletionReason.STOP_TOKEN


def test_a_cap_on_forwards_inside_a_canvas_returns_the_canvases_before_it(model: DiffusionGemma) -> None:
    settings = options(confidence_threshold=0.0)
    asked = request(PROMPTS[0], max_nfe=6, settings=settings)
    [answer] = Service.of(model).run([asked])
    assert len(answer) == CANVAS
    assert asked.completion is CompletionReason.NFE_LIMIT
    assert not asked.canvas.decided[CANVAS:].any()


def test_the_seed_decides_the_answer(model: DiffusionGemma, alone: list[list[int]]) -> None:
    answers = Service.of(model).run([request(PROMPTS[0], seed, seed=seed) for seed in range(3)])
    assert answers[0] == alone[0]
    assert len({tuple(answer) for answer in answers}) == 3


def test_a_request_that_does_not_fit_the_budget_is_refused_with_the_number_needed(model: DiffusionGemma) -> None:
    with pytest.raises(PromptTooLong, match=f"Set it to at least {CANVAS}"):
        Service.of(model, budget=CANVAS - 1).scheduler.add(request(prompt(3)))


def test_a_shortened_canvas_needs_no_more_rows_than_it_has(model: DiffusionGemma) -> None:
    short, whole = (
        request(prompt(3), max_tokens=2, settings=options(shorten_last_canvas=each)) for each in (True, False)
    )
    service = Service.of(model, budget=2)
    with pytest.raises(PromptTooLong, match=f"Set it to at least {CANVAS}"):
        service.scheduler.add(whole)
    [answer] = service.run([short])
    assert len(answer) == 2
    assert max(plan.rows for plan in service.plans) == 2


def test_bias_and_limits_are_heeded_by_what_is_drawn_and_by_what_is_accepted(model: DiffusionGemma) -> None:
    only = dict.fromkeys((7, 11), 60.0)
    service = Service.of(model)
    answers = service.run([request(PROMPTS[0], 0, logit_bias=only), request(PROMPTS[0], 1, top_k=1)])
    assert set(answers[0]) <= {7, 11}
    assert len(answers[1]) == 10
    certain = [
        decision.entropy.max()
        for plan, output in zip(service.plans, service.outputs, strict=True)
        for window, decision in zip(plan.windows, output.decisions, strict=True)
        if window.request_id == 1 and isinstance(decision, CanvasDecision)
    ]
    assert set(certain) == {0.0}, "a single token is certain"


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_random_company_pages_and_aborts_change_no_answer(
    model: DiffusionGemma, alone: list[list[int]], data: st.DataObject
) -> None:
    chosen = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=4, unique=True))
    aborted = data.draw(st.sets(st.sampled_from(chosen), max_size=1))
    service = Service.of(
        model,
        page_size=data.draw(st.sampled_from([2, 4, 8])),
        num_pages=data.draw(st.sampled_from([16, 24, 64])),
        budget=data.draw(st.integers(CANVAS, 40)),
        max_num_reqs=data.draw(st.integers(1, 4)),
        prefix_caching=data.draw(st.booleans()),
    )
    asked = {index: request(PROMPTS[index], index, seed=index) for index in chosen}
    for each in asked.values():
        service.scheduler.add(each)
    for _ in range(data.draw(st.integers(0, 12))):
        service.step()
    for index in aborted:
        service.scheduler.abort(index)
    while service.step():
        assert len(service.plans) < 1000
    for index, each in asked.items():
        answer = each.output_tokens.tolist()
        assert answer == alone[index][: len(answer)] if index in aborted else answer == alone[index]
    assert np.all([len(plan.windows) > 0 for plan in service.plans])
