"""Random draws as a pure function of (seed, draw, position): no generator state, no dependence on the batch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diffulex_core.pattern import IntArray
from diffulex_core.types import BoolArray, SamplingBatch

_SEED_BITS = 2**63 - 1
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def numbers(batch: SamplingBatch, rows: IntArray | BoolArray) -> NDArray[np.float64]:
    """One number in [0, 1) for each of these rows, by its request's seed and counter and its own position."""
    seeds = np.array([(params.seed or 0) & _SEED_BITS for params in batch.params], dtype=np.int64)
    draws = np.array(batch.draws, dtype=np.int64)
    owners = batch.window_of_row[rows]
    return uniform(seeds[owners], draws[owners], batch.positions[rows])


def uniform(seeds: IntArray, draws: IntArray, positions: IntArray) -> NDArray[np.float64]:
    """One number in [0, 1) for each row.

    Args:
        seeds, draws, positions: [rows] int64; equal triples give equal numbers on every machine.
    Returns:
        [rows] float64 with 53 random bits (SplitMix64 finalisers chained over the three words).
    """
    state = np.zeros(len(seeds), dtype=np.uint64)
    for word in (seeds, draws, positions):
        state = _mix(state + word.astype(np.uint64) * _GOLDEN + _GOLDEN)
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(word: NDArray[np.uint64]) -> NDArray[np.uint64]:
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))
