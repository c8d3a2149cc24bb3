"""`naive`: the definition, one slot at a time. For comparison; far too slow for anything else."""

from __future__ import annotations

import torch
from torch import Tensor

from diffulex_core.kernels.case import KernelCase
from diffulex_core.kernels.moe.contract import live_ids
from diffulex_core.layers.activations import ACTIVATIONS
from diffulex_core.layers.moe.spec import Activation


class NaiveExperts:
    """Every product in fp32, whatever the dtype of the weights."""

    def reasons(self, case: KernelCase) -> list[str]:
        """It runs everywhere."""
        return []

    def priority(self, case: KernelCase) -> int:
        """The last choice."""
        return 0

    def __call__(
        self, x: Tensor, ids: Tensor, weights: Tensor, w13: Tensor, w2: Tensor, activation: Activation
    ) -> Tensor:
        """See `ExpertsKernel`."""
        act = ACTIVATIONS[activation]
        out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        for row, experts in enumerate(live_ids(ids, weights).tolist()):
            for slot, expert in enumerate(experts):
                if expert >= 0:
                    gate, up = (w13[expert].float() @ x[row].float()).chunk(2)
                    out[row] += weights[row, slot] * (w2[expert].float() @ (act(gate) * up))
        return out.to(x.dtype)
