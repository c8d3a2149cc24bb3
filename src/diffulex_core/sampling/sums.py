"""Sums of exponentials over rows of logits, exact enough that thresholds mean what they say."""

from __future__ import annotations

import torch
from torch import Tensor


def log_sum(rows: Tensor) -> Tensor:
    """Logarithm of each row's sum of exponentials; minus infinity where all are, not finite where one is NaN or inf.

    The row's maximum is added in float64. In float32 the logarithm of the sum would drown in a large maximum: of two
    equal logits of 10,000 each has a probability of 0.5, not of 0.4998.

    Args:
        rows: [rows, columns] float32.
    Returns:
        [rows] float64.
    """
    peak = rows.amax(dim=1).clamp(min=torch.finfo(rows.dtype).min)
    total = never_alone(rows - peak[:, None]).exp_().sum(dim=1)[: len(rows)]
    return peak.double() + total.double().log()


def never_alone(rows: Tensor) -> Tensor:
    """The rows, or two copies of a single one: torch splits a single sum among threads, which changes its bits."""
    return rows.repeat(2, 1) if len(rows) == 1 else rows
