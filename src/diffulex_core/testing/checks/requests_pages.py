"""Checks of what requests feed: spans keep their bounds, see what they should, and final K/V depend on final text."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from diffulex_core.pattern import Extent, IntArray
from diffulex_core.testing.asks import asks, flips
from diffulex_core.testing.check import AnyCheck, CheckFailed, check
from diffulex_core.testing.effort import Effort
from diffulex_core.testing.journeys import Ask, Journey, bench
from diffulex_core.testing.shadow import MIXED, NONE, key_ends
from diffulex_core.testing.subjects import StrategySubject
from diffulex_core.types import CARRIED, Span

WINDOWS = (1, 3, 8)
"""Sliding windows to ask a pattern about."""


@check(StrategySubject)
def check_spans_keep_their_bounds(subject: StrategySubject, effort: Effort) -> None:
    """Spans stay within what `most_slots` and `most_rows` announced and within their budget, and sample rows they feed.

    Why: the engine refuses requests that can never fit by these two numbers. One that needs more than it said is
    preempted for ever or runs into another request's pages; one whose groups point at wrong rows decides a position by
    the logits of another.
    Fix: see the message; `Req.plan`, `Req.chunkable`, `SampleGroup.rows` and `ReqContext.shifted` say what is meant.
    """
    with bench(subject) as made:

        @effort.for_all(0.5, ask=asks(made), lost=flips(), tight=st.booleans())
        def holds(ask: Ask, lost: list[bool], tight: bool) -> None:
            journey = made.journey(ask)
            slots, rows = journey.request.most_slots(), journey.request.most_rows()
            while journey.request.completion is None:
                _check_budgets(journey, rows)
                span = journey.advance(rows if tight else None)
                _check_bounds(journey, span, slots)
                _check_groups(journey, span)
                if span.advances and journey.request.completion is None and lost[journey.steps % len(lost)]:
                    journey.preempt(cached=tight)


@check(StrategySubject)
def check_rows_see_each_other(subject: StrategySubject, effort: Effort) -> None:
    """Positions that are sampled together see one another and all that is before them, and no row sees unfed slots.

    Why: an interval that ends one too early hides a block's last token from the rest of it, and one that ends too late
    reads what another request left in the page. Neither crashes; both cost quality.
    Fix: `AttentionPattern.key_end` is exclusive: the end of the row's own block is `(position // B + 1) * B`. A sliding
    window hides keys before it only, never the row itself.
    """
    with bench(subject) as made:
        pattern = made.context.pattern

        @effort.for_all(0.5, ask=asks(made), budget=st.none() | st.integers(0, 3), lost=flips())
        def holds(ask: Ask, budget: int | None, lost: list[bool]) -> None:
            journey = made.journey(ask)
            limit = None if budget is None else journey.request.most_rows() + budget
            while journey.request.completion is None:
                span = journey.advance(limit)
                if span.packed is not None:
                    continue
                ends = key_ends(pattern, span, len(ask.prompt))
                for group in span.groups:
                    _check_group_sees_itself(journey, span, ends, group.positions)
                _check_windows(journey, span)
                if span.advances and journey.request.completion is None and lost[journey.steps % len(lost)]:
                    journey.preempt(cached=True)


@check(StrategySubject)
def check_published_text_is_final(subject: StrategySubject, effort: Effort) -> None:
    """K/V that may serve other requests depend on known tokens only, as far as `dependency_end` says, and on no others.

    Why: a page is found by the tokens before `dependency_end`. Where its K/V depend on a token behind that, on one that
    was still a mask, or on a blended embedding, the next request with the same beginning reads somebody else's K/V.
    Fix: let `dependency_end` cover everything that `key_end` lets a final row see, directly or through others; raise
    `store_until` in the span that feeds the final tokens, not before; and let `known_tokens` end before positions whose
    K/V depend on more than tokens. A strategy whose pages never can be shared forces `enable_prefix_caching` off.
    """
    with bench(subject) as made:

        @effort.for_all(0.6, ask=asks(made), tight=st.booleans(), lost=flips())
        def holds(ask: Ask, tight: bool, lost: list[bool]) -> None:
            journey, checked = made.journey(ask), 0
            budget = journey.request.most_rows() if tight else None
            while journey.request.completion is None:
                span = journey.advance(budget)
                if journey.shares and not journey.shadow.blind:
                    checked = _check_published(journey, checked)
                if span.advances and journey.request.completion is None and lost[journey.steps % len(lost)]:
                    journey.preempt(cached=True)
                    checked = journey.stored


@check(StrategySubject)
def check_pieces_see_the_same(subject: StrategySubject, effort: Effort) -> None:
    """Final K/V depend on the same tokens whether known text is fed at once, in pieces, or again after pages were lost.

    Why: long prompts are fed in pieces as the budget allows, so a cut at the wrong place makes an answer depend on how
    busy the engine was.
    Fix: cut only before a block, where `dependency_end(cut - 1, prompt_len) <= cut`, and make `plan` give None where no
    such cut fits the budget. After `preempted()` feed text under the visibility that it had.
    """
    with bench(subject) as made:

        @effort.for_all(0.5, ask=asks(made), more=st.integers(0, 5), lost=flips())
        def holds(ask: Ask, more: int, lost: list[bool]) -> None:
            whole, pieces = made.journey(ask), made.journey(ask)
            whole.finish()
            budget = pieces.request.most_rows() + more
            while pieces.request.completion is None:
                span = pieces.advance(budget)
                if span.advances and pieces.request.completion is None and lost[pieces.steps % len(lost)]:
                    pieces.preempt(cached=bool(more % 2))
            if whole.shadow.blind or pieces.shadow.blind:
                return
            end = min(whole.stored, pieces.stored)
            ours, its = whole.shadow.seen(end), pieces.shadow.seen(end)
            if not np.array_equal(ours, its):
                at = int(np.flatnonzero((ours != its).any(axis=1))[0])
                raise CheckFailed(
                    f"the final K/V at position {at} of {whole} depend on {_told(ours[at])} where nothing limits the "
                    f"rows, and on {_told(its[at])} where {budget} rows are free and pages are lost "
                    f"{pieces.preemptions} times"
                )
            if whole.output != pieces.output:
                raise CheckFailed(
                    f"{whole} answers {list(whole.output)} in one piece, and {list(pieces.output)} with {budget} rows "
                    "in a step"
                )


def _check_budgets(journey: Journey, rows: int) -> None:
    """What the scheduler counts on before it places a span."""
    request, stored = journey.request, journey.stored
    chunkable = request.chunkable(stored)
    least = journey.bench.context.pattern.block_size if chunkable else rows
    if request.plan(stored, max(1, least)) is None:
        raise CheckFailed(
            f"after {journey.steps} steps {journey} plans nothing with a budget of {least} rows, "
            + ("one block, although chunkable() is true" if chunkable else "which most_rows() said is enough")
        )
    before = 0
    for budget in range(1, rows + 3):
        span = request.plan(stored, budget)
        got = 0 if span is None else span.rows
        if got > budget or got < before:
            raise CheckFailed(
                f"after {journey.steps} steps {journey} plans {got} rows with a budget of {budget}"
                + ("" if got > budget else f" and {before} with {budget - 1}; a larger budget never fits less")
            )
        if span is not None and not span.advances and not span.groups and span.store_until <= stored:
            raise CheckFailed(
                f"after {journey.steps} steps {journey} plans positions {span.start} to {span.end} with a budget of "
                f"{budget}, which store nothing new and decide nothing"
            )
        before = got


def _check_bounds(journey: Journey, span: Span, slots: int) -> None:
    if span.slots > slots or len(journey.request.stored_tokens) > slots:
        raise CheckFailed(
            f"step {journey.steps} of {journey} needs {max(span.slots, len(journey.request.stored_tokens))} slots, but "
            f"most_slots() said {slots}"
        )
    if not 0 <= span.catch_up <= len(span.tokens) or not span.store_until <= span.end:
        raise CheckFailed(
            f"step {journey.steps} of {journey}: catch_up={span.catch_up} and store_until={span.store_until} do not "
            f"fit a span of positions {span.start} to {span.end}"
        )


def _check_groups(journey: Journey, span: Span) -> None:
    shifted = journey.bench.context.shifted if journey.ask.shifted is None else journey.ask.shifted
    seen = set[int]()
    for group in span.groups:
        positions, rows = group.positions, group.rows
        if len(positions) == 0 or len(rows) != len(positions) or (np.diff(positions) <= 0).any():
            raise CheckFailed(
                f"step {journey.steps} of {journey}: positions {positions.tolist()} of a group, rows {rows}"
            )
        if seen & set(positions.tolist()):
            raise CheckFailed(f"step {journey.steps} of {journey}: two groups ask for the same position")
        seen.update(positions.tolist())
        fed = rows != CARRIED
        if (rows[fed] < 0).any() or (rows[fed] >= len(span.tokens)).any():
            raise CheckFailed(
                f"step {journey.steps} of {journey}: rows {rows.tolist()} of {len(span.tokens)} that are fed"
            )
        if (rows[fed] + span.start != positions[fed] - shifted).any() or (not shifted and not fed.all()):
            raise CheckFailed(
                f"step {journey.steps} of {journey}: positions {positions.tolist()} are decided by the rows at "
                f"{(rows + span.start).tolist()}; with {'shifted' if shifted else 'aligned'} logits each is decided by "
                f"the row {'before it' if shifted else 'at it'}"
            )


def _check_group_sees_itself(journey: Journey, span: Span, ends: IntArray, positions: IntArray) -> None:
    together = [at for at in positions.tolist() if span.start <= at < span.end]
    for at in together:
        if ends[at - span.start] <= together[-1]:
            raise CheckFailed(
                f"step {journey.steps} of {journey}: positions {together} are sampled together, but the row at {at} "
                f"sees keys up to {int(ends[at - span.start])}, so not the one at {together[-1]}"
            )


def _check_windows(journey: Journey, span: Span) -> None:
    pattern, positions = journey.bench.context.pattern, np.arange(span.start, span.end)
    extent = Extent(
        prompt_len=len(journey.ask.prompt),
        phase=span.phase,
        final_end=span.store_until,
        end=span.end if span.visible_end is None else span.visible_end,
    )
    before = positions
    for window in WINDOWS:
        first = np.asarray(pattern.key_start(positions, extent, window))
        if first.shape != positions.shape or (first < 0).any() or (first > before).any():
            raise CheckFailed(
                f"step {journey.steps} of {journey}: with a sliding window of {window} the rows from position "
                f"{span.start} on see keys from {first.tolist()} on; each sees itself, and more through a wider window"
            )
        before = first


def _check_published(journey: Journey, checked: int) -> int:
    """Look at what became publishable since the last time; where that ends now."""
    pattern, end = journey.bench.context.pattern, journey.publishable
    known, seen = journey.request.known_tokens, journey.shadow.seen(end)
    for position in range(checked, end):
        needed = pattern.dependency_end(position, journey.request.prompt_len)
        row, where = seen[position], f"in step {journey.steps} of {journey} the K/V at position {position}"
        if (row[needed:] != NONE).any():
            behind = needed + int(np.flatnonzero(row[needed:] != NONE)[-1])
            raise CheckFailed(
                f"{where} are published, and depend on the token at {behind}; dependency_end says that they depend on "
                f"nothing from {needed} on"
            )
        wrong = np.flatnonzero((row[:needed] != NONE) & (row[:needed] != known[:needed]))
        if len(wrong):
            at = int(wrong[0])
            fed = "more than a token" if row[at] == MIXED else f"token {int(row[at])}"
            raise CheckFailed(
                f"{where} are published, but when they were computed position {at} was fed {fed}; known_tokens has "
                f"{int(known[at])} there"
            )
    return max(checked, end)


def _told(row: IntArray) -> str:
    at = np.flatnonzero(row != NONE)
    return "nothing" if len(at) == 0 else f"positions {int(at[0])} to {int(at[-1])} (tokens {row[at].tolist()})"


CHECKS: tuple[AnyCheck, ...] = (
    check_spans_keep_their_bounds,
    check_rows_see_each_other,
    check_published_text_is_final,
    check_pieces_see_the_same,
)
