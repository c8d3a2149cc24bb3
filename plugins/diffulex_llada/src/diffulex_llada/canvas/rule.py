"""LLaDA's order of decisions: how many positions of the current block in each step, and which."""

from __future__ import annotations

import attrs
import numpy as np

from diffulex_core.canvas.choice import above, draws, most_confident
from diffulex_core.canvas.rule import Region
from diffulex_core.canvas.schedule import block_steps, quota
from diffulex_core.plugin import BoolArray, FloatArray, IntArray

_REMASKING = 1
"""Stream of the draws that order positions."""


@attrs.define(kw_only=True, eq=False)
class LLaDARule:
    """Blocks from left to right; in each the positions with the highest confidence first.

    Confidence is the probability of the chosen token before temperature and limits, or random. A block's steps follow
    from its own masks, so one that is full early costs no further steps.

    Attributes:
        block_length: positions of a block.
        steps: of each block.
        random: order positions at random instead of by confidence.
        threshold: decide all positions that reach it and at least one, whatever the steps; None = as many as `steps`
            asks for.
        deferred: tokens whose positions come last.
        seed: of the request's draws.
        length: positions of the canvas.
        force_first: decide a block's first position in its first step.
    """

    block_length: int
    steps: tuple[int, ...]
    length: int
    random: bool = False
    threshold: float | None = None
    deferred: frozenset[int] = frozenset()
    seed: int = 0
    force_first: bool = False
    _block: int = attrs.field(default=0, init=False)
    _spent: int = attrs.field(default=0, init=False)
    """Steps taken in the block."""
    _step: int = attrs.field(default=0, init=False)

    @property
    def measure(self) -> str:
        """The probability of the token."""
        return "prob"

    @property
    def clean(self) -> bool:
        """Temperature moves the token, not its confidence."""
        return True

    def ask(self, open: IntArray) -> IntArray:
        """The masks of the leftmost unfinished block; of a random order only those that will be decided."""
        inside = self._inside(open)
        if self.random and not self.deferred:
            return inside[most_confident(self._forced(self._random(inside), inside), self._count(open))]
        return inside

    def choose(self, open: IntArray, asked: IntArray, tokens: IntArray, confidence: FloatArray) -> BoolArray:
        rank = self._random(asked) if self.random else confidence.astype(np.float64)
        if self.deferred:
            rank = np.where(np.isin(tokens, sorted(self.deferred)), -np.inf, rank)
        rank = self._forced(rank, asked)
        chosen = most_confident(rank, self._count(open)) if self.threshold is None else above(rank, self.threshold)
        block = self._current(open)
        self._spent = self._spent_in(block) + 1
        self._block = block
        self._step += 1
        return chosen

    def region(self, open: IntArray) -> Region:
        """The leftmost unfinished block."""
        block, masks = self._current(open), len(self._inside(open))
        start = block * self.block_length
        return Region(
            start=start,
            end=min(start + self.block_length, self.length),
            last=masks == (1 if self.threshold is not None else self._count(open)),
        )

    def left(self, open: IntArray) -> int | None:
        if self.threshold is not None:
            return None
        blocks, masks = np.unique(open // self.block_length, return_counts=True)
        steps = [self.steps[block] - self._spent_in(block) for block in blocks.tolist()]
        return int(np.maximum(np.minimum(masks, steps), 1).sum())

    def _current(self, open: IntArray) -> int:
        return int(open[0]) // self.block_length

    def _inside(self, open: IntArray) -> IntArray:
        return open[: open.searchsorted((self._current(open) + 1) * self.block_length)]

    def _spent_in(self, block: int) -> int:
        return self._spent if block == self._block else 0

    def _count(self, open: IntArray) -> int:
        block = self._current(open)
        return quota(len(self._inside(open)), self.steps[block] - self._spent_in(block))

    def _forced(self, rank: FloatArray, positions: IntArray) -> FloatArray:
        """The ranks, the highest for a block's first position in its first step where that is asked for."""
        block = int(positions[0]) // self.block_length
        if not self.force_first or self._spent_in(block):
            return rank
        return np.where(positions == block * self.block_length, np.inf, rank)

    def _random(self, positions: IntArray) -> FloatArray:
        return draws(self.seed, self._step, positions, _REMASKING)


def llada_rule(
    *,
    length: int,
    block_length: int | None,
    steps: int | None,
    random: bool,
    threshold: float | None,
    deferred: frozenset[int],
    seed: int,
    force_first: bool = False,
) -> LLaDARule:
    """The rule of a canvas of `length` positions; None = one block, and one step for each position."""
    block_length = min(block_length or length, length)
    return LLaDARule(
        block_length=block_length,
        steps=block_steps(length, block_length, steps or length),
        random=random,
        threshold=threshold,
        deferred=deferred,
        seed=seed,
        length=length,
        force_first=force_first,
    )
