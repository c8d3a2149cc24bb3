"""`triton`: grouped products on the GPU, without waiting for row counts; on the CPU in Triton's interpreter only."""

from __future__ import annotations

import torch
from torch import Tensor

from diffulex_core.kernels.case import KernelCase
from diffulex_core.kernels.moe.arrange import arrange_on_device
from diffulex_core.kernels.on_triton import reasons_against, widened
from diffulex_core.layers.moe.spec import Activation

TILES = (16, 64)
"""Rows of a tile: few where experts have few rows, so that little is computed for padding, else many."""
COLUMNS, DEPTH = 64, 32
"""Outputs of a tile, and inputs that one multiplication takes."""


class TritonExperts:
    """Bits are the same in every run: nothing is added atomically."""

    def reasons(self, case: KernelCase) -> list[str]:
        """Triton must be there, and a CUDA device or Triton's interpreter."""
        return reasons_against(case.device_type)

    def priority(self, case: KernelCase) -> int:
        """The best on a GPU; the interpreter is for tests."""
        return 20 if case.device_type == "cuda" else 5

    def __call__(
        self, x: Tensor, ids: Tensor, weights: Tensor, w13: Tensor, w2: Tensor, activation: Activation
    ) -> Tensor:
        """See `ExpertsKernel`."""
        from diffulex_core.kernels.moe.fused_kernels import down_product, gated_product, sum_slots

        rows, slots = ids.shape
        experts, hidden, size = w2.shape
        out = torch.empty_like(x)
        if rows == 0:
            return out
        ids, x, weights = ids.contiguous(), x.contiguous(), weights.contiguous()
        tile = TILES[rows * slots >= TILES[1] * experts]
        plan = arrange_on_device(ids, weights, experts, tile)
        tiles = len(plan.expert_of_tile)
        gated = x.new_empty(tiles * tile, size)
        outputs = torch.empty(rows * slots, hidden, dtype=torch.float32, device=x.device)
        sizes = {"widen": widened(x.dtype), "tile": tile, "columns": COLUMNS, "depth": DEPTH}
        with torch.cuda.device_of(x):
            gated_product[(tiles, -(-size // COLUMNS))](
                x, w13, gated, plan.slot_of_row, plan.expert_of_tile, hidden, size, slots,
                gelu=activation == "gelu_tanh", **sizes,
            )  # fmt: skip
            down_product[(tiles, -(-hidden // COLUMNS))](
                gated, w2, outputs, plan.slot_of_row, plan.expert_of_tile, hidden, size, **sizes
            )
            sum_slots[(rows, -(-hidden // COLUMNS))](outputs, ids, weights, out, hidden, slots, columns=COLUMNS)
        return out
