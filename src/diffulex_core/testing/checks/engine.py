"""Checks of whole engines: an answer depends on its request alone, not on company, pages, pieces or other engines."""

from __future__ import annotations

from functools import partial
from typing import Any

import attrs
import numpy as np

from diffulex_core.errors import ConfigError, PromptTooLong
from diffulex_core.outputs import ReqTrajectory
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.testing.check import AnyCheck, CheckFailed, check
from diffulex_core.testing.checks import engine_ends
from diffulex_core.testing.effort import Effort
from diffulex_core.testing.engines import Asked, Engines, engines, run_out, serve, step, tokens
from diffulex_core.testing.subjects import EngineSubject


@check(EngineSubject)
def check_batches_answer_as_alone(subject: EngineSubject, effort: Effort) -> None:
    """Requests that are served together, in any order, get the answers that each gets alone, greedy and sampled ones.

    Why: users see answers change with the traffic otherwise, and cannot reproduce any. Samplers that draw all requests
    from one random generator are the usual cause, and state that a network keeps between forwards.
    Fix: draw from `SamplingParams.seed`, the window's `draw` and the position; compute rows of one sequence apart from
    those of others (`AttentionBatch` says which row sees what); keep nothing on the network.
    """
    with engines(subject) as made:
        asked = made.mixed()
        alone = made.alone(asked)
        for order in ([0, 1, 2], [2, 0, 1]):
            together = tokens(serve(made.open(enable_prefix_caching=False), [asked[each] for each in order]))
            _expect_equal(
                asked, alone, [together[order.index(each)] for each in range(3)], f"together, in order {order}"
            )


@check(EngineSubject)
def check_seeds_fix_answers(subject: EngineSubject, effort: Effort) -> None:
    """A seed fixes a sampled answer: in a second run, in another engine, and whatever else draws random numbers.

    Why: a seed that does not fix the answer makes no experiment repeatable.
    Fix: derive every random number from the request's seed, its `draws` and the position; never use the global
    generators of torch, numpy or Python, nor one that is made when the engine is.
    """
    import random

    import torch

    with engines(subject) as made:
        asked = [
            Asked(
                prompt=made.prompt(5, salt),
                params=SamplingParams(temperature=1.5, seed=7, max_tokens=5, ignore_eos=True),
            )
            for salt in range(2)
        ]
        engine = made.open(enable_prefix_caching=False)
        first = tokens(serve(engine, asked))
        kept = random.getstate(), np.random.get_state(), torch.get_rng_state()
        try:
            for number in range(2):
                random.seed(number)
                np.random.seed(number)
                torch.manual_seed(number)
                _expect_equal(asked, first, tokens(serve(engine, asked)), "again, other generators seeded anew")
        finally:
            random.setstate(kept[0])
            np.random.set_state(kept[1])
            torch.set_rng_state(kept[2])
        _expect_equal(asked, first, tokens(serve(made.open(), asked)), "in another engine")


@check(EngineSubject)
def check_engines_share_nothing(subject: EngineSubject, effort: Effort) -> None:
    """Two engines of one process that take turns, on different requests, answer as each does alone.

    Why: programs run several engines beside each other. Whatever a module or a class keeps between them (caches by
    request id, the last hidden state, options of the engine made last) answers one user with another's text.
    Fix: keep state on the objects that an engine makes: requests, runner, scheduler, network. A module level cache may
    hold only what depends on its key alone.
    """
    with engines(subject) as made:
        ours = made.mixed()
        theirs = [
            Asked(
                prompt=made.prompt(len(each.prompt) + 4, salt=9 + index),
                params=attrs.evolve(each.params, seed=50 + index, max_tokens=each.params.max_tokens + 2),
            )
            for index, each in enumerate(ours)
        ]
        # Ids meet other requests than alone. Where there is a threshold, the second engine is given one, which is worth
        # as much as one that is given to the requests: what the first engine left behind would show.
        theirs.reverse()
        has_threshold = "accept_threshold" in subject.strategy.strategy.thresholds
        other: dict[str, Any] = {"accept_threshold": 0.4} if has_threshold else {}
        told = [attrs.evolve(each, params=attrs.evolve(each.params, thresholds=other)) for each in theirs]
        wanted = [made.alone(ours), made.alone(told[::-1])[::-1]]
        first = made.open()
        larger = {"page_size": 16} if first.config.cache.page_size == 8 else {}
        pair = [first, made.open(num_pages=30, **larger, **other)]
        answers: list[dict[int, tuple[int, ...]]] = [{}, {}]
        for engine, asked, got in zip(pair, (ours, theirs), answers, strict=True):
            for each in asked:
                engine.add_request(each.prompt, each.params, deliver=partial(_note, got))
        while not all(engine.is_finished() for engine in pair):
            for engine in pair:
                if not engine.is_finished():
                    step(engine)
        for asked, alone, got in zip((ours, theirs), wanted, answers, strict=True):
            _expect_equal(asked, alone, [got[number] for number in sorted(got)], "beside another engine")
        pair[0].close()
        _expect_equal(theirs, wanted[1], tokens(serve(pair[1], theirs)), "after another engine was closed")


def _never_shares(subject: EngineSubject) -> str | None:
    """`when` of the check of prefix caching."""
    return None if subject.strategy.strategy.forces.get("enable_prefix_caching", True) else "it never shares pages"


@check(EngineSubject, when=_never_shares)
def check_cached_pages_change_nothing(subject: EngineSubject, effort: Effort) -> None:
    """Answers are the same whether a prompt's pages come from the cache, in whole or in part, or are computed.

    Why: with prefix caching a request reads K/V that another one computed. If they depend on anything but the shared
    tokens, it continues the other one's text.
    Fix: let the pattern's `dependency_end` cover everything that a stored K/V depends on, and publish (`known_tokens`,
    `store_until`) final tokens only; or force `enable_prefix_caching` off where that is impossible.
    """
    with engines(subject) as made:
        base, other = made.prompt(17, 1), made.prompt(17, 2)
        long = SamplingParams(temperature=0.0, seed=3, max_tokens=9, ignore_eos=True)
        short = attrs.evolve(long, max_tokens=3)
        whole = Asked(prompt=base, params=long)
        parts = [
            Asked(prompt=text, params=short) for text in (base[:8] + other[8:13], base[:11] + other[11:], base[:13])
        ]
        [first] = answer = made.alone([whole])
        # It goes on where the answer ended, so that pages of an answer are read too.
        turn = Asked(prompt=(*base, *first, *other[:2]), params=short)
        wanted = made.alone([*parts, turn])
        engine = made.open()
        _expect_equal([whole], answer, tokens(serve(engine, [whole])), "by an engine with prefix caching")
        for each, alone in zip([*parts, turn], wanted, strict=True):
            _expect_equal([each], [alone], tokens(serve(engine, [each])), "after others with the same beginning")
        _expect_equal([whole], answer, tokens(serve(engine, [whole])), "for the second time")


@check(EngineSubject)
def check_pieces_change_nothing(subject: EngineSubject, effort: Effort) -> None:
    """Answers are the same whether a prompt is read at once or in the smallest pieces that are allowed.

    Why: long prompts are read in pieces when the engine is busy. A cut inside a block, or a row that is kept from the
    wrong piece, changes the answer then and only then.
    Fix: cut where `dependency_end` allows, keep the hidden row that shifted logits need (`Span.keep`), and compare
    with check_pieces_see_the_same, which says where.
    """
    with engines(subject) as made:
        asked = [
            Asked(
                prompt=made.prompt(length, length),
                params=SamplingParams(temperature=0.8, seed=4, max_tokens=5, ignore_eos=True),
            )
            for length in (23, 30)
        ]
        _expect_equal(
            asked, made.alone(asked), _with_small_budget(made, asked), "with the smallest max_num_batched_tokens"
        )


@check(EngineSubject)
def check_page_size_changes_nothing(subject: EngineSubject, effort: Effort) -> None:
    """Answers are the same for every page size.

    Why: a page is where K/V lie, nothing else. An answer that depends on it reads slots that are not its own.
    Fix: compute slots as `page * page_size + offset` from the page table, and visibility from positions.
    """
    with engines(subject) as made:
        asked = made.mixed()
        wanted = made.alone(asked)
        for page_size in (4, 16, 32):
            try:
                engine = made.open(page_size=page_size, num_pages=384 // page_size)
            except ConfigError:
                continue
            _expect_equal(asked, wanted, tokens(serve(engine, asked)), f"with page_size={page_size}")


@check(EngineSubject)
def check_preemption_changes_nothing(subject: EngineSubject, effort: Effort) -> None:
    """Answers are the same where pages hardly suffice for one request, so that requests lose theirs and start over.

    Why: pages run out on busy days only, and then nobody looks at single answers.
    Fix: see check_requests_survive_losing_their_pages. Of a strategy that reads K/V which are not final yet (spans with
    `visible_end`) only the length is compared, since a fresh pass over present text may decide otherwise.
    """
    with engines(subject) as made:
        asked = [
            Asked(
                prompt=made.prompt(length, length),
                params=SamplingParams(temperature=0.7, seed=5, max_tokens=12, ignore_eos=True),
            )
            for length in (3, 7, 10)
        ]
        wanted = made.alone(asked)
        engine, provisional = made.tight(asked, enable_prefix_caching=False), False
        records = dict[int, tuple[int, ...]]()
        for each in asked:
            engine.add_request(each.prompt, each.params, deliver=partial(_note, records))
        for _ in range(1000):
            if engine.is_finished():
                break
            plan = step(engine)
            provisional |= any(window.span.visible_end is not None for window in plan.windows)
        run_out(engine)
        answers = [records[number] for number in sorted(records)]
        if provisional:
            wanted, answers = ([tuple(0 for _ in each) for each in some] for some in (wanted, answers))
        _expect_equal(asked, wanted, answers, "with pages for hardly more than one request")


def _with_small_budget(made: Engines, asked: list[Asked]) -> list[tuple[int, ...]]:
    """The answers of an engine with the smallest max_num_batched_tokens that it accepts."""
    for budget in (9, 16, 24, 33, 48, 64, 128, 256):
        try:
            engine = made.open(max_num_batched_tokens=budget, enable_prefix_caching=False)
            if engine.config.schedule.max_num_batched_tokens != budget:
                continue
            return tokens(serve(engine, asked))
        except (ConfigError, PromptTooLong):
            continue
    raise CheckFailed(
        f"no budget of up to 256 rows serves a prompt of {max(len(each.prompt) for each in asked)} tokens"
    )


def _note(got: dict[int, tuple[int, ...]], record: ReqTrajectory) -> None:
    got[record.req_id] = record.token_ids


def _expect_equal(asked: list[Asked], wanted: list[tuple[int, ...]], got: list[tuple[int, ...]], how: str) -> None:
    for each, alone, answer in zip(asked, wanted, got, strict=True):
        if alone != answer:
            sampled = f"temperature {each.params.temperature}, seed {each.params.seed}"
            raise CheckFailed(
                f"a prompt of {len(each.prompt)} tokens ({sampled}) is answered {list(answer)} {how}, and "
                f"{list(alone)} by an engine that serves nobody else"
            )


CHECKS: tuple[AnyCheck, ...] = (
    check_batches_answer_as_alone,
    check_seeds_fix_answers,
    check_engines_share_nothing,
    check_cached_pages_change_nothing,
    check_pieces_change_nothing,
    check_page_size_changes_nothing,
    check_preemption_changes_nothing,
    *engine_ends.CHECKS,
)
