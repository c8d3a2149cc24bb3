"""`torch`: slots sorted by expert, one matrix product for each expert that has any."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from diffulex_core.kernels.case import KernelCase
from diffulex_core.kernels.moe.contract import live_ids
from diffulex_core.layers.activations import ACTIVATIONS
from diffulex_core.layers.moe.spec import Activation

ROW_TILE = 8
"""Rows of an expert's product are padded to a multiple: with fewer, a CPU's bits depend on how many there are. (Widths
are taken to be multiples of 4, as in every published model; else they depend on a row's place all the same.)"""


class TorchExperts:
    """Runs wherever torch does. On a GPU every call waits for the row counts."""

    def reasons(self, case: KernelCase) -> list[str]:
        """It runs everywhere."""
        return []

    def priority(self, case: KernelCase) -> int:
        """The best on the CPU."""
        return 10

    def __call__(
        self, x: Tensor, ids: Tensor, weights: Tensor, w13: Tensor, w2: Tensor, activation: Activation
    ) -> Tensor:
        """See `ExpertsKernel`."""
        act = ACTIVATIONS[activation]
        slots = ids.shape[1]
        chosen = live_ids(ids, weights).flatten()
        order = chosen.sort(stable=True).indices
        counts = torch.bincount(chosen + 1, minlength=len(w13) + 1)  # first those without an expert
        ends = counts.cumsum(0).tolist()
        outputs = torch.zeros(len(chosen), x.shape[1], dtype=torch.float32, device=x.device)
        for expert, (start, end) in enumerate(pairwise(ends)):
            if start == end:
                continue
            mine = order[start:end]
            rows = functional.pad(x[mine // slots], (0, 0, 0, -len(mine) % ROW_TILE))
            gate, up = functional.linear(rows, w13[expert]).chunk(2, dim=-1)
            outputs[mine] = functional.linear(act(gate) * up, w2[expert])[: len(mine)].float()
        return weighted_sum(outputs.unflatten(0, (-1, slots)), weights).to(x.dtype)


def weighted_sum(outputs: Tensor, weights: Tensor) -> Tensor:
    """[rows, slots, hidden] and [rows, slots] -> [rows, hidden], added slot by slot.

    Products and sums are separate steps: fused ones round differently at the end of a tensor than in its middle. Where
    a weight is zero the output must be zero.
    """
    summed = torch.zeros_like(outputs[:, 0])
    for slot in range(outputs.shape[1]):
        summed = summed + outputs[:, slot] * weights[:, slot, None]
    return summed
