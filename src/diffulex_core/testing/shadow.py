"""What a request's K/V depend on: for each slot, the token of every position that went into it."""

from __future__ import annotations

import attrs
import numpy as np

from diffulex_core.pattern import AttentionPattern, Extent, IntArray
from diffulex_core.testing.check import CheckFailed
from diffulex_core.types import Span

NONE, MIXED = -1, -2
"""In place of a token: the position did not go in; it did, but not as one token (blended, or as two of them)."""


@attrs.define(kw_only=True, eq=False)
class Shadow:
    """The memory of one sequence.

    Attributes:
        pattern: who sees whom.
        prompt_len: length of the prompt.
        slots: how many there are.
        blind: a span was packed, so that slots are no positions any more and nothing more is known.
    """

    pattern: AttentionPattern
    prompt_len: int
    slots: int
    blind: bool = False
    _fed: IntArray = attrs.field(init=False)
    _token: IntArray = attrs.field(init=False)
    _seen: IntArray = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._fed = np.full(self.slots, NONE, dtype=np.int64)
        self._token = np.full(self.slots, NONE, dtype=np.int64)
        self._seen = np.full((self.slots, self.slots), NONE, dtype=np.int64)

    def execute(self, span: Span) -> None:
        """Write the rows of a span.

        Raises:
            CheckFailed: a row reads a slot that was never written, or does not see itself.
        """
        if span.packed is not None or span.refresh is not None or self.blind:
            self.blind = True
            return
        if not 0 <= span.start < span.end <= self.slots or (span.visible_end or 0) > self.slots:
            raise CheckFailed(
                f"a span of positions {span.start} to {span.end} with visible_end={span.visible_end} leaves the "
                f"{self.slots} slots that most_slots() reserved; every span lies within them"
            )
        positions = np.arange(span.start, span.end)
        ends = key_ends(self.pattern, span, self.prompt_len)
        tokens = np.where(self._soft(span, positions), MIXED, span.tokens)
        stored = positions >= span.store_from
        direct, seen = self._token.copy(), self._seen.copy()
        direct[positions[stored]], seen[positions[stored]] = tokens[stored], NONE
        self._refuse_blanks(positions, ends, direct)
        # Within one forward a row also depends on what the rows that it sees do see, layer by layer.
        for _ in range(3):
            before = seen.copy()
            for end in np.unique(ends):
                seen[positions[stored & (ends == end)]] = _merged(direct[:end], before[:end])
        self._token, self._seen = direct, seen
        self._fed[positions[stored]] = span.tokens[stored]

    def lose(self, kept: int) -> None:
        """Forget all but the first `kept` slots."""
        self._fed[kept:], self._token[kept:], self._seen[kept:] = NONE, NONE, NONE

    def tokens(self, end: int) -> IntArray:
        """[end] tokens that the first slots were fed."""
        return self._fed[:end].copy()

    def seen(self, end: int) -> IntArray:
        """[end, slots] what the K/V of the first slots depend on: by position its token, `NONE` or `MIXED`."""
        return self._seen[:end].copy()

    def _soft(self, span: Span, positions: IntArray) -> np.typing.NDArray[np.bool_]:
        """Rows that are fed more than their token."""
        soft = np.zeros(len(positions), dtype=np.bool_)
        if span.blends is not None:
            soft |= np.isin(positions, span.blends.positions)
        if span.recall:
            soft |= np.isin(positions, np.concatenate([group.positions for group in span.groups]))
        return soft

    def _refuse_blanks(self, positions: IntArray, ends: IntArray, direct: IntArray) -> None:
        for position, end in zip(positions.tolist(), ends.tolist(), strict=True):
            blank = np.flatnonzero(direct[:end] == NONE)
            if len(blank):
                raise CheckFailed(
                    f"the row at position {position} sees keys up to {end}, but slot {blank[0]} holds nothing: it was "
                    "not fed since the pages were given. Feed it in the same span, or end visibility before it"
                )


def key_ends(pattern: AttentionPattern, span: Span, prompt_len: int) -> IntArray:
    """[rows] exclusive end of the keys that each row of a span sees.

    Raises:
        CheckFailed: a row does not see itself.
    """
    end = span.end if span.visible_end is None else span.visible_end
    extent = Extent(prompt_len=prompt_len, phase=span.phase, final_end=span.store_until, end=end)
    positions = np.arange(span.start, span.end)
    ends: IntArray = np.minimum(np.asarray(pattern.key_end(positions, extent)), end)
    if ends.shape != positions.shape:
        raise CheckFailed(f"key_end gave {ends.shape} numbers for {len(positions)} rows; give one for each")
    if (ends <= positions).any():
        at = int(positions[ends <= positions][0])
        raise CheckFailed(
            f"the row at position {at} sees keys up to {int(ends[at - span.start])}, so not itself (block size "
            f"{pattern.block_size}, prompt of {prompt_len}, phase {span.phase.value}); key_end is exclusive"
        )
    return ends


def _merged(direct: IntArray, seen: IntArray) -> IntArray:
    """[slots] what a row depends on that sees slots with these tokens, which depend on those."""
    own = np.full((len(direct), seen.shape[1]), NONE, dtype=np.int64)
    own[np.arange(len(direct)), np.arange(len(direct))] = direct
    every = np.concatenate((own, seen))
    high = every.max(axis=0)
    low = np.where(every == NONE, np.iinfo(np.int64).max, every).min(axis=0)
    return np.where(high == NONE, np.where(low == MIXED, MIXED, NONE), np.where(low == high, high, MIXED))
