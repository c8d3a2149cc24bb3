"""Root-mean-square normalisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffulex_core.context import BuildContext
from diffulex_core.layers.linear import empty_parameter


class RMSNorm(nn.Module):
    """`w * cast(x / sqrt(mean(x²) + eps))`: normalised in fp32, cast back to the input's dtype, then scaled."""

    def __init__(self, ctx: BuildContext, width: int, eps: float) -> None:
        super().__init__()
        self.weight = empty_parameter(ctx, width)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * normed.to(x.dtype)
