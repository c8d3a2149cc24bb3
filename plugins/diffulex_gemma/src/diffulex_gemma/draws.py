"""Where the strategy's random numbers come from."""

from __future__ import annotations

from typing import Protocol

import attrs
import numpy as np

from diffulex_core.plugin import FloatArray, IntArray, SamplingParams
from diffulex_core.sampling.rng import uniform

_SEED_BITS = 2**63 - 1


def seed_of(params: SamplingParams) -> int:
    """A request's seed as 63 bits."""
    return (params.seed or 0) & _SEED_BITS


class Draws(Protocol):
    """A source of random numbers that says the same whenever it is asked the same."""

    def sampling(self, seeds: IntArray, draws: IntArray, positions: IntArray) -> FloatArray:
        """[rows] float64 in [0, 1): which token of its distribution each position takes.

        Args:
            seeds, draws, positions: [rows] of requests, of their sampling steps, and absolute.
        """
        ...

    def noise(self, seeds: IntArray, draws: IntArray, positions: IntArray, vocab_size: int) -> IntArray:
        """[n] ids below `vocab_size`: what undecided positions hold when the step reads them.

        Args:
            seeds, draws, positions: as for `sampling`; the steps are those that read them.
        """
        ...


@attrs.frozen
class CounterDraws:
    """The engine's counter-based numbers: two streams for each request, one for each use."""

    def sampling(self, seeds: IntArray, draws: IntArray, positions: IntArray) -> FloatArray:
        """See `Draws`."""
        return uniform(seeds, 2 * draws, positions)

    def noise(self, seeds: IntArray, draws: IntArray, positions: IntArray, vocab_size: int) -> IntArray:
        """See `Draws`."""
        ids: IntArray = (uniform(seeds, 2 * draws + 1, positions) * vocab_size).astype(np.int64)
        return ids


COUNTER: Draws = CounterDraws()
