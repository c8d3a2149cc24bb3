"""The rules that denoise a canvas: temperature, acceptance, and when it is done. Pure functions of host arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diffulex_core.plugin import BoolArray, FloatArray, IntArray


def temperature(step: int, steps: int, t_min: float, t_max: float) -> float:
    """Temperature of step `step` (from 0) of at most `steps`: it starts at `t_max` and falls evenly towards `t_min`."""
    return t_min + (t_max - t_min) * (steps - step) / steps


def within_bound(entropy: FloatArray, bound: float) -> BoolArray:
    """Which positions keep the tokens that were drawn for them.

    In ascending order of entropy, the lowest position first among equals, those are kept before which the entropies
    add up to at most `bound`. So one always is, and those that are kept are nearly independent of each other:
    the sum without its largest term bounds the information that they share (arXiv:2505.24857).

    Args:
        entropy: [..., n] in nats, at least 0; each last axis by itself.
        bound: in nats, at least 0.
    Returns:
        [..., n] bool, at least one of each n True.
    """
    ordered = np.sort(entropy, axis=-1).astype(np.float64)
    sums = np.cumsum(ordered, axis=-1)
    count = 1 + (sums[..., :-1] <= bound).sum(axis=-1, keepdims=True)
    last = np.take_along_axis(ordered, count - 1, axis=-1)
    below, equal = entropy < last, entropy == last
    room = count - below.sum(axis=-1, keepdims=True)
    kept: BoolArray = below | (equal & (np.cumsum(equal, axis=-1) <= room))
    return kept


def stable(best: IntArray, earlier: Sequence[IntArray], threshold: int) -> bool:
    """Whether the most probable tokens are those of the last `threshold` steps.

    Args:
        best: [n] of this step.
        earlier: [n] of each step before it, the latest last.
        threshold: at least 0; fewer steps than that are not enough.
    """
    if threshold == 0:
        return True
    return len(earlier) >= threshold and all(np.array_equal(best, other) for other in earlier[-threshold:])


def confident(entropy: FloatArray, threshold: float) -> bool:
    """Whether the mean of [n] entropies, in nats, is below the threshold."""
    return float(entropy.mean(dtype=np.float64)) < threshold
