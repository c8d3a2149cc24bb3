"""Checks of what the rows of requests see and what is kept of them, as networks that are used so were trained."""

from __future__ import annotations

import attrs
import numpy as np
from hypothesis import strategies as st

from diffulex_core.pattern import Extent
from diffulex_core.plugin import Capability
from diffulex_core.testing.asks import asks, flips, takes_any_logits
from diffulex_core.testing.check import AnyCheck, CheckFailed, check
from diffulex_core.testing.effort import Effort
from diffulex_core.testing.journeys import Ask, Journey, bench
from diffulex_core.testing.shadow import key_ends
from diffulex_core.testing.subjects import StrategySubject
from diffulex_core.types import CARRIED, Span

WINDOWS = (1, 3, 8)
"""Sliding windows to ask a pattern about."""


def _is_unshifted(subject: StrategySubject) -> str | None:
    """`when` of what is said of shifted logits."""
    shifted = subject.partner.family.logits == "shifted" or takes_any_logits(subject.strategy.requires)
    return None if shifted else "it requires aligned logits"


@check(StrategySubject, when=_is_unshifted)
def check_carried_rows_were_kept(subject: StrategySubject, effort: Effort) -> None:
    """With shifted logits, a position that a kept row decides has the row before it kept, also after a cache hit.

    Why: the runner keeps one hidden row for a request. If that is another position's, or another request computed the
    pages before it, the first token of a block is decided from a row that predicts something else.
    Fix: `CARRIED` in `SampleGroup.rows` stands for the row of the latest `Span.keep`, which must be the position
    before. Where nothing was kept, as when the pages came from the cache, feed that row once more, with `store_from`
    behind it.
    """
    with bench(subject) as made:

        @effort.for_all(0.3, ask=asks(made), hit=st.booleans(), lost=flips(), tight=st.booleans())
        def holds(ask: Ask, hit: bool, lost: list[bool], tight: bool) -> None:
            page_size = made.config.cache.page_size
            if hit:  # of all there is, so that the first row that is fed is the first that decides
                ask = attrs.evolve(ask, prompt=(ask.prompt * page_size)[: -(-len(ask.prompt) // page_size) * page_size])
            journey = made.journey(attrs.evolve(ask, shifted=True))
            if hit and journey.shares:
                _give_cached_pages(journey)
            budget, kept = journey.request.most_rows() if tight else None, None
            while journey.request.completion is None:
                span = journey.advance(budget)
                for group in span.groups:
                    for position in group.positions[group.rows == CARRIED].tolist():
                        if kept != position - 1:
                            raise CheckFailed(
                                f"step {journey.steps} of {journey} decides position {position} from a kept row, and "
                                f"{'none was kept' if kept is None else f'the kept one is that of position {kept}'}"
                                f"{'; its first pages came from the cache' * hit}"
                            )
                if span.keep is not None:
                    if not span.start <= span.keep < span.end:
                        raise CheckFailed(
                            f"step {journey.steps} of {journey} keeps the row at {span.keep} and feeds positions "
                            f"{span.start} to {span.end}"
                        )
                    kept = span.keep
                if span.advances and journey.request.completion is None and lost[journey.steps % len(lost)]:
                    journey.preempt(cached=tight)


def _give_cached_pages(journey: Journey) -> None:
    """Pages of the prompt that a request with the same one left behind."""
    donor = journey.bench.journey(journey.ask)
    page_size = journey.bench.config.cache.page_size
    while donor.request.completion is None and donor.publishable < len(journey.request.known_tokens):
        donor.advance()
    journey.stored = min(donor.publishable, len(journey.request.known_tokens)) // page_size * page_size
    donor.shadow.lose(journey.stored)
    journey.shadow = donor.shadow


def _is_not_block_causal(subject: StrategySubject) -> str | None:
    """`when` of what the capability `block_causal` means."""
    requires = subject.strategy.requires
    return None if Capability.BLOCK_CAUSAL in requires else "it does not require block_causal networks"


@check(StrategySubject, when=_is_not_block_causal, level="recommended")
def check_rows_see_their_whole_block(subject: StrategySubject, effort: Effort) -> None:
    """A strategy that requires `block_causal` lets every row see up to the end of its block, and no further.

    Why: networks with that capability were trained so. A prompt that is read otherwise, by one key only, is answered
    a little worse, and nothing else shows it.
    Fix: `AttentionPattern.key_end` at position p is `(p // B + 1) * B` in every phase; the runner cuts it at the end of
    the span. A strategy that knows better declares this check in `expected_failures`.
    """
    with bench(subject) as made:
        pattern = made.context.pattern

        @effort.for_all(0.3, ask=asks(made), lost=flips())
        def holds(ask: Ask, lost: list[bool]) -> None:
            journey = made.journey(ask)
            while journey.request.completion is None:
                span = journey.advance()
                ends = key_ends(pattern, span, len(ask.prompt))
                rows = np.arange(span.start, span.end)
                block_ends = np.minimum(
                    (rows // pattern.block_size + 1) * pattern.block_size, _extent(journey, span).end
                )
                if span.packed is None and not np.array_equal(ends, block_ends):
                    at = int(np.flatnonzero(ends != block_ends)[0])
                    raise CheckFailed(
                        f"step {journey.steps} of {journey}: the row at position {int(rows[at])} sees keys up to "
                        f"{int(ends[at])}, and its block of {pattern.block_size} ends at {int(block_ends[at])}"
                    )
                if span.advances and journey.request.completion is None and lost[journey.steps % len(lost)]:
                    journey.preempt(cached=True)


@check(StrategySubject, level="recommended")
def check_windows_have_their_width(subject: StrategySubject, effort: Effort) -> None:
    """In layers with a sliding window, rows of final text see as many keys as the window says, themselves included.

    Why: networks are trained so. One key more or less is an answer that is only a little worse.
    Fix: `AttentionPattern.key_start` of a final row (`Extent.final_end`) at position p is `max(0, p - window + 1)`. A
    pattern of networks that were trained otherwise declares this check in `expected_failures`.
    """
    with bench(subject) as made:
        pattern = made.context.pattern

        @effort.for_all(0.3, ask=asks(made))
        def holds(ask: Ask) -> None:
            journey = made.journey(ask)
            while journey.request.completion is None:
                span = journey.advance()
                final = np.arange(span.start, min(span.end, span.store_until))
                extent = _extent(journey, span)
                for window in WINDOWS:
                    first = np.asarray(pattern.key_start(final, extent, window))
                    expected = np.maximum(final - window + 1, 0)
                    if not np.array_equal(first, expected):
                        at = int(np.flatnonzero(first != expected)[0])
                        raise CheckFailed(
                            f"step {journey.steps} of {journey}: with a sliding window of {window} the row at position "
                            f"{int(final[at])} sees keys from {int(first[at])} on, which makes "
                            f"{int(final[at] - first[at]) + 1} with itself; expected from {int(expected[at])} on"
                        )


def _extent(journey: Journey, span: Span) -> Extent:
    return Extent(
        prompt_len=len(journey.ask.prompt),
        phase=span.phase,
        final_end=span.store_until,
        end=span.end if span.visible_end is None else span.visible_end,
    )


CHECKS: tuple[AnyCheck, ...] = (
    check_carried_rows_were_kept,
    check_rows_see_their_whole_block,
    check_windows_have_their_width,
)
