"""Dream's order of decisions: a grid of times says how many positions, the algorithm says which."""

from __future__ import annotations

import attrs
import numpy as np
import torch
from numpy.typing import NDArray

from diffulex_core.canvas.choice import draws, weighted
from diffulex_core.canvas.rule import Region
from diffulex_core.canvas.schedule import decided_share, decided_shares, grid_quota
from diffulex_core.plugin import BoolArray, FloatArray, IntArray

_TRANSFER, _ORDER = 1, 2
"""Streams of the draws that pick positions."""

_LAST = np.finfo(np.float32).min
"""Rank of what comes after everything else."""

_AT_ONCE = 1 << 16
"""Numbers that are drawn at once when steps are looked for."""

MEASURES = {"topk_margin": "margin", "entropy": "entropy"}
"""Algorithms whose confidence is not the probability of the token."""


@attrs.define(kw_only=True, eq=False)
class DreamRule:
    """All masks of the canvas are eligible in every step.

    Confidence is that of the tempered and limited distribution which tokens are drawn from.

    Attributes:
        alg: the algorithm.
        grid: [steps + 1] float32 times.
        prompt_len, length: positions before the canvas, and of it.
        alg_temp: above 0 positions are drawn; 0 = the best come first.
        threshold: of `confidence_threshold`.
        deferred: tokens whose positions come last.
        skip_empty: leave out steps that decide nothing.
        seed: of the request's draws.
    """

    alg: str
    grid: NDArray[np.float32]
    prompt_len: int
    length: int
    alg_temp: float = 0.0
    threshold: float = 0.9
    deferred: frozenset[int] = frozenset()
    skip_empty: bool = True
    seed: int = 0
    _step: int = attrs.field(default=0, init=False)
    _carry: int = attrs.field(default=0, init=False)
    """Positions that earlier steps were due and found too uncertain."""

    @property
    def measure(self) -> str:
        """By algorithm."""
        return MEASURES.get(self.alg, "prob")

    @property
    def clean(self) -> bool:
        """Positions are ranked by the distribution that tokens come from."""
        return False

    def ask(self, open: IntArray) -> IntArray:
        """All masks; of `origin` those whose turn it is. None in a step that decides nothing and is not left out."""
        step = self._next(open)
        if self.alg == "origin":
            return open[self._due(open, step)]
        return open if self._count(open, step) else open[:0]

    def choose(self, open: IntArray, asked: IntArray, tokens: IntArray, confidence: FloatArray) -> BoolArray:
        step = self._next(open)
        self._step = step + 1
        count = self._count(open, step)
        late = np.isin(tokens, sorted(self.deferred))
        if self.alg == "origin":
            return ~late | self._is_last(step)
        if len(asked) == 0:
            return np.ones(0, dtype=np.bool_)
        rank = np.where(late, _LAST, confidence.astype(np.float32))
        if self.alg == "confidence_threshold":
            chosen = self._best(rank, asked, count) & (rank >= self.threshold) | self._best(rank, asked, 1)
            self._carry = count - int(chosen.sum())
            return chosen
        if self.alg_temp > 0:
            return weighted(rank, count, self.alg_temp, draws(self.seed, step, asked, _ORDER))
        return self._best(rank, asked, count)

    def region(self, open: IntArray) -> Region:
        """The whole canvas."""
        step = self._next(open)
        if self.alg == "origin":
            last = bool(self._due(open, step).all()) and (not self.deferred or self._is_last(step))
        else:
            last = len(open) == (1 if self.alg == "confidence_threshold" else self._count(open, step))
        return Region(start=0, end=self.length, last=last)

    def left(self, open: IntArray) -> int | None:
        if self.alg == "confidence_threshold" or (self.alg == "origin" and self.deferred):
            return None
        step, forwards, rest = self._step, 0, open
        while len(rest):
            deciding = self._first_deciding(rest, step)
            forwards += 1 if self.skip_empty else deciding - step + 1
            rest = rest[~self._due(rest, deciding)] if self.alg == "origin" else rest[self._count(rest, deciding) :]
            step = deciding + 1
        return forwards

    def _is_last(self, step: int) -> bool:
        """Whether the grid ends with this step, which decides whatever is left."""
        return step >= len(self.grid) - 2

    def _best(self, rank: FloatArray, positions: IntArray, count: int) -> BoolArray:
        """[n] the `count` highest. Where limits leave single tokens, many positions are equally sure; they fall as in
        the published sampler, which leaves them to `torch.topk` over the whole sequence."""
        sequence = torch.full((self.prompt_len + self.length,), -torch.inf)
        sequence[self.prompt_len + positions] = torch.from_numpy(rank)
        best = sequence.topk(count).indices.numpy() - self.prompt_len
        return np.isin(positions, best)

    def _next(self, open: IntArray) -> int:
        """The step at hand: the next one, or the next that decides something."""
        return self._first_deciding(open, self._step) if self.skip_empty else self._step

    def _first_deciding(self, open: IntArray, step: int) -> int:
        """The first step from `step` on that decides something. Looked for in ever more steps at once, because most of
        a long grid decides nothing."""
        if self.alg == "confidence_threshold":
            return step
        width = 1
        while True:
            steps = np.arange(step, step + width)
            found = np.flatnonzero(self._decides(open, steps))
            if len(found):
                return step + int(found[0])
            step += width
            width = min(2 * width, max(1, _AT_ONCE // len(open)))

    def _decides(self, open: IntArray, steps: IntArray) -> BoolArray:
        """[n] whether each step decides any of the masks."""
        shares = decided_shares(self.grid, steps)
        if self.alg != "origin":
            counts = np.full_like(shares, len(open)) * shares
            some: BoolArray = counts >= 1
            return some
        numbers = draws(self.seed, np.repeat(steps, len(open)), np.tile(open, len(steps)), _TRANSFER)
        due: BoolArray = np.logical_or.reduce(numbers.reshape(len(steps), len(open)) < shares[:, None], axis=1)
        return due

    def _due(self, open: IntArray, step: int) -> BoolArray:
        """Which masks `origin` decides: each with the share of the step, independently."""
        due: BoolArray = draws(self.seed, step, open, _TRANSFER) < decided_share(self.grid, step)
        return due

    def _count(self, open: IntArray, step: int) -> int:
        if self.alg == "confidence_threshold":
            return min(len(open), max(1, grid_quota(len(open), self.grid, step) + self._carry))
        return grid_quota(len(open), self.grid, step)
