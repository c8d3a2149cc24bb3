"""Running blocks of several requests as rows of a grid, and the rules that judge all of them at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import attrs
import numpy as np
from numpy.typing import NDArray

from diffulex_core.blend_columns import BlendColumns
from diffulex_core.pattern import IntArray
from diffulex_core.types import Alternatives, BoolArray, Decision, FloatArray, Outline, Terms

Values = TypeVar("Values", bound=np.generic)
KindredRule = TypeVar("KindredRule", contravariant=True)


@attrs.frozen(kw_only=True, eq=False)
class BlockGrid:
    """Running blocks as they are before a step, a row for each, those of one request after those of another.

    Attributes:
        counts: blocks of each request.
        blocks: [b] index of each.
        tokens: [b, block size] int64; undecided ones hold a filler.
        decided: [b, block size] bool.
        editable: [b, block size] bool, False where the prompt stands; None = it stands nowhere.
    """

    counts: Sequence[int]
    blocks: IntArray
    tokens: IntArray
    decided: BoolArray
    editable: BoolArray | None

    def spread(self, values: NDArray[Values], prompt: Any) -> NDArray[Values]:
        """[n] values of the editable positions -> [b, block size]; elsewhere `prompt`, a value or [b, block size]."""
        if self.editable is None:
            return values.reshape(self.tokens.shape)
        grid = np.empty(self.tokens.shape, dtype=values.dtype)
        grid[...] = prompt
        grid[self.editable] = values
        return grid

    def flat(self, grid: NDArray[Values]) -> NDArray[Values]:
        """[b, block size] -> [n] what stands at the editable positions."""
        return grid.ravel() if self.editable is None else grid[self.editable]


@attrs.frozen(kw_only=True, eq=False)
class GridAnswers:
    """What the sampler says of the positions of a grid.

    Attributes:
        proposed: [b, block size] int64 chosen tokens; the prompt's where it stands.
        confidence: [b, block size] float64 of each; infinite where the prompt stands.
        watched: [b, block size] probability of the token that stands at each position; infinite where the prompt
            stands. None = it was not asked for.
        alternatives: of the n editable positions; None = none were asked for.
    """

    proposed: IntArray
    confidence: FloatArray
    watched: FloatArray | None = None
    alternatives: Alternatives | None = None

    @classmethod
    def of(cls, grid: BlockGrid, decisions: Sequence[Decision]) -> GridAnswers:
        """The decisions of the grid's requests."""
        given = [decision for decision in decisions if len(decision.positions)] or decisions
        watched = [decision.watched for decision in given if decision.watched is not None]
        probable = [decision.alternatives for decision in given if decision.alternatives is not None]
        told = np.concatenate(watched).astype(np.float64) if len(watched) == len(given) else None
        return cls(
            proposed=grid.spread(np.concatenate([decision.tokens for decision in given]), grid.tokens),
            confidence=grid.spread(
                np.concatenate([decision.confidence for decision in given]).astype(np.float64), np.inf
            ),
            watched=None if told is None else grid.spread(told, np.inf),
            alternatives=Alternatives(
                tokens=np.concatenate([each.tokens for each in probable]),
                probabilities=np.concatenate([each.probabilities for each in probable]),
            )
            if len(probable) == len(given)
            else None,
        )


@attrs.frozen(kw_only=True, eq=False)
class GridVerdict:
    """What becomes of the positions of a grid; the prompt stays.

    Attributes:
        write: [b, block size] bool: they take the proposed token, which may be the one that they have.
        changed: [b, block size] bool: those of them that count as set, anew or in place of another token.
        open: [b] bool: the block may still change, even if it has no mask now.
        reopen: [b, block size] bool: decided positions that return to mask; None = none do.
    """

    write: BoolArray
    changed: BoolArray
    open: BoolArray
    reopen: BoolArray | None = None


class JointRule(Protocol[KindredRule]):
    """What rules of one kind do together: a value, and rules of equal ones go together.

    Each of them asks everything of an ACTIVE block that is not prompt, decided or not, on the same terms.
    """

    @property
    def terms(self) -> Terms:
        """On which positions are asked."""
        ...

    @property
    def asks_of_tokens(self) -> bool:
        """Whether `discouraged` or `watched` name any token."""
        ...

    def discouraged(self, grid: BlockGrid) -> IntArray | None:
        """[b, block size] token whose logit is lowered, -1 for none; None = no token."""
        ...

    def watched(self, grid: BlockGrid) -> IntArray | None:
        """[b, block size] token whose probability comes back; None = none."""
        ...

    def judge(self, rules: Sequence[KindredRule], grid: BlockGrid, answers: GridAnswers) -> GridVerdict:
        """What becomes of the blocks; the rules take note of it.

        Args:
            rules: of each request.
            grid: their blocks.
            answers: the sampler's.
        """
        ...

    def blends(self, rules: Sequence[KindredRule], outlines: Sequence[Outline]) -> BlendColumns | None:
        """What is fed blended of the rows of some spans; None = nothing.

        Args:
            rules: of each span's request.
            outlines: the spans.
        """
        ...


class PerBlock:
    """A few numbers for each block of a request, 0 at first; there are as many as were looked at."""

    def __init__(self, count: int) -> None:
        self._numbers: FloatArray = np.zeros((count, 0))
        self._first = 0

    def of(self, first: int, last: int) -> FloatArray:
        """[count, last - first] those of the blocks from `first` up to `last`, to be read and written in place."""
        if first < last and (first < self._first or last > self._first + self._numbers.shape[1]):
            self._grow(first, last)
        return self._numbers[:, first - self._first : last - self._first]

    def _grow(self, first: int, last: int) -> None:
        """Make room for these blocks, and for as many behind them as there are."""
        have = self._numbers.shape[1]
        if have == 0:
            self._first = first
        before = max(0, self._first - first)
        behind = max(0, last - self._first - have)
        room = ((0, 0), (before, behind + have if behind else 0))
        self._numbers, self._first = np.pad(self._numbers, room), self._first - before


def numbers_of(each: Sequence[PerBlock], grid: BlockGrid) -> tuple[FloatArray, list[FloatArray]]:
    """[count, b] the numbers of all blocks of a grid, a copy, and each request's own part, to be written in place."""
    firsts = _firsts(grid)
    own = [numbers.of(first, first + count) for numbers, first, count in zip(each, firsts, grid.counts, strict=True)]
    return np.concatenate(own, axis=1), own


def write_numbers(own: Sequence[FloatArray], numbers: FloatArray) -> None:
    """Write [count, b] numbers back to where `numbers_of` read them."""
    begin = 0
    for part in own:
        end = begin + part.shape[1]
        part[...] = numbers[:, begin:end]
        begin = end


def _firsts(grid: BlockGrid) -> list[int]:
    """Index of each request's first block; 0 where it has none."""
    blocks, at, firsts = grid.blocks.tolist(), 0, list[int]()
    for count in grid.counts:
        firsts.append(blocks[at] if count else 0)
        at += count
    return firsts
