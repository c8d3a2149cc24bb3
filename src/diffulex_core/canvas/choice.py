"""Which of the proposed positions are decided in a step: pure functions over one canvas."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diffulex_core.pattern import IntArray
from diffulex_core.sampling.rng import uniform
from diffulex_core.types import BoolArray, FloatArray

_STREAM = 1 << 40
"""Distance between the streams of draws of one request, so that none of them repeats the sampler's."""


def draws(seed: int, step: int | IntArray, positions: IntArray, stream: int) -> NDArray[np.float64]:
    """[n] numbers in [0, 1), one for each position: a function of the request's seed, its step and the position.

    Args:
        step: one for all, or [n] one for each.
        stream: at least 1; streams of one request are independent.
    """
    rows = np.ones(len(positions), dtype=np.int64)
    return uniform(rows * seed, rows * (stream * _STREAM + step), positions)


def most_confident(confidence: FloatArray, count: int) -> BoolArray:
    """[n] the `count` highest, the first of equals."""
    chosen = np.zeros(len(confidence), dtype=np.bool_)
    chosen[np.argsort(-confidence, kind="stable")[:count]] = True
    return chosen


def weighted(confidence: FloatArray, count: int, temperature: float, numbers: NDArray[np.float64]) -> BoolArray:
    """[n] `count` positions drawn without replacement with weights softmax(confidence / temperature).

    Adding Gumbel noise to the logarithms of the weights and taking the highest draws so.

    Args:
        numbers: [n] in [0, 1), one draw for each position.
    """
    exponential = -np.log1p(-numbers)
    noise = -np.log(np.maximum(exponential, np.finfo(np.float64).tiny))
    return most_confident(confidence.astype(np.float64) / temperature + noise, count)


def above(confidence: FloatArray, threshold: float) -> BoolArray:
    """[n] those that reach `threshold`, and in any case the most confident one."""
    return (confidence >= threshold) | most_confident(confidence, 1)
