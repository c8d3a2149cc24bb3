"""Root-mean-square normalisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffulex_core.context import BuildContext
from diffulex_core.layers.linear import empty_parameter


def normed(x: Tensor, weight: Tensor | None, eps: float, *, wide: bool = False) -> Tensor:
    """`weight * cast(x / sqrt(mean(x²) + eps))`: in fp32, cast back to the input's dtype, then scaled.

    Args:
        x: [..., width].
        weight: [width]; None = 1.
        eps: added to the mean square.
        wide: scaled before it is cast back.
    Returns:
        [..., width] in the dtype of `x`.
    """
    full = x.float()
    full = full * torch.rsqrt(full.square().mean(-1, keepdim=True) + eps)
    if weight is None:
        return full.to(x.dtype)
    return (full * weight.float()).to(x.dtype) if wide else weight * full.to(x.dtype)


class RMSNorm(nn.Module):
    """`normed` with a weight [width], alone or along with the addition before or after it."""

    def __init__(self, ctx: BuildContext, width: int, eps: float, *, wide: bool = False) -> None:
        """See `normed`."""
        super().__init__()
        self.weight = empty_parameter(ctx, width)
        self.eps, self.wide = eps, wide
        self.kernels = ctx.kernels

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        if self.kernels is not None and x.dim() == 2:
            return self.kernels.normed(x, self.weight, self.eps, wide=self.wide)
        return normed(x, self.weight, self.eps, wide=self.wide)

    def after(self, x: Tensor, addend: Tensor | None) -> tuple[Tensor, Tensor]:
        """`x + addend` and its norm, [rows, width] all; None adds nothing."""
        if addend is None:
            return x, self(x)
        if self.kernels is not None:
            return self.kernels.add_and_norm(x, addend, self.weight, self.eps, wide=self.wide)
        total = x + addend
        return total, self(total)

    def onto(self, x: Tensor, addend: Tensor) -> Tensor:
        """`x` plus the norm of `addend`, [rows, width] all."""
        if self.kernels is not None:
            return self.kernels.norm_and_add(x, addend, self.weight, self.eps, wide=self.wide)
        total: Tensor = x + self(addend)
        return total
