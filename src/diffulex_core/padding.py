"""Rows of a forward are padded, so that matrix kernels treat a row alike whatever stands beside it."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from diffulex_core.pattern import IntArray
from diffulex_core.types import BoolArray

Array = TypeVar("Array", IntArray, BoolArray)

ROW_MULTIPLE = 8
"""Rows are padded to a multiple of this."""


def round_up(rows: int) -> int:
    """The smallest multiple of `ROW_MULTIPLE` that holds `rows`."""
    return -(-rows // ROW_MULTIPLE) * ROW_MULTIPLE


def pad(values: Array, length: int, fill: int) -> Array:
    """Values with `fill` behind them, `length` in all."""
    if len(values) == length:
        return values
    padded = np.full(length, fill, dtype=values.dtype)
    padded[: len(values)] = values
    return padded
