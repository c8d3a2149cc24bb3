"""The accept rule of mask filling: confident positions, else one where the block may not stand still."""

from __future__ import annotations

import numpy as np

from diffulex_core.pattern import IntArray
from diffulex_core.types import BoolArray, FloatArray


def accept(
    confidence: FloatArray, group_of_row: IntArray, accept_threshold: FloatArray, force_one: BoolArray
) -> BoolArray:
    """Which rows are decided now.

    A row is accepted when its confidence is strictly above its group's threshold. A group that accepts none and
    forces one accepts its most confident row, the first of equals.

    Args:
        confidence: [rows] float32.
        group_of_row: [rows] ascending, every group has at least one row.
        accept_threshold: [groups] float64.
        force_one: [groups] bool.
    Returns:
        [rows] bool.
    """
    accepted: BoolArray = confidence > accept_threshold[group_of_row]
    if len(confidence) == 0:
        return accepted
    starts = np.flatnonzero(np.diff(group_of_row, prepend=-1))
    stuck = force_one & ~np.logical_or.reduceat(accepted, starts)
    best = np.maximum.reduceat(confidence, starts)
    candidates = np.flatnonzero((confidence == best[group_of_row]) & stuck[group_of_row])
    _, first = np.unique(group_of_row[candidates], return_index=True)
    accepted[candidates[first]] = True
    return accepted
