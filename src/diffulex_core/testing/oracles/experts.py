"""Experts by their definition: one row, one slot, one expert at a time, in float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffulex_core.layers.moe.spec import Activation


def experts(x: Tensor, ids: Tensor, weights: Tensor, w13: Tensor, w2: Tensor, activation: Activation) -> Tensor:
    """[rows, hidden] float64 of what `ExpertsKernel.__call__` is called with; nothing is done for idle slots."""
    out = torch.zeros(x.shape, dtype=torch.float64)
    size = w2.shape[2]
    for row in range(len(x)):
        for slot in range(ids.shape[1]):
            expert, weight = int(ids[row, slot]), float(weights[row, slot])
            if expert < 0 or weight == 0:
                continue
            inner = w13[expert].cpu().double() @ x[row].cpu().double()
            gated = torch.tensor([_gate(float(value), activation) for value in inner[:size]], dtype=torch.float64)
            out[row] += weight * (w2[expert].cpu().double() @ (gated * inner[size:]))
    return out


def _gate(value: float, activation: Activation) -> float:
    if activation == "silu":
        return value / (1 + math.exp(-value))
    return value / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (value + 0.044715 * value**3)))
