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
        self.kernels = ctx.kernels

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        if self.kernels is not None and x.dim() == 2:
            return self.kernels.normed(x, self.weight, self.eps)
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * normed.to(x.dtype)

    def after(self, x: Tensor, addend: Tensor | None) -> tuple[Tensor, Tensor]:
        """`x + addend` and its norm, [rows, width] all; None adds nothing."""
        if addend is None:
            return x, self(x)
        if self.kernels is not None:
            return self.kernels.add_and_norm(x, addend, self.weight, self.eps)
        total = x + addend
        return total, self(total)
