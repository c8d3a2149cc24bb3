"""Linear layers and the embedding: bare weights, filled by the weight loader."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional

from diffulex_core.context import BuildContext
from diffulex_core.weights.types import ShardId


def empty_parameter(ctx: BuildContext, *shape: int) -> nn.Parameter:
    """A parameter without values, for inference."""
    return nn.Parameter(torch.empty(shape, dtype=ctx.dtype, device=ctx.device), requires_grad=False)


class Embedding(nn.Module):
    """One row for each token id: `weight` [vocab, hidden]."""

    def __init__(self, ctx: BuildContext, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self.weight = empty_parameter(ctx, vocab_size, hidden_size)

    def forward(self, input_ids: Tensor) -> Tensor:
        """[rows] ids -> [rows, hidden]."""
        return functional.embedding(input_ids, self.weight)


class Linear(nn.Module):
    """`y = x Wᵀ (+ b)`: `weight` [out, in], `bias` [out] or None."""

    def __init__(self, ctx: BuildContext, in_features: int, out_features: int, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = empty_parameter(ctx, out_features, in_features)
        self.bias = empty_parameter(ctx, out_features) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """[rows, in] -> [rows, out]."""
        return functional.linear(x, self.weight, self.bias)


class PackedLinear(Linear):
    """Several linear layers over one input, stacked along the output so that they cost one multiplication.

    Satisfies `weights.PackedModule`: checkpoints store the parts under their own names.
    """

    def __init__(self, ctx: BuildContext, in_features: int, parts: Mapping[str, int], *, bias: bool = False) -> None:
        """`parts` gives the width of each part, in stacking order."""
        super().__init__(ctx, in_features, sum(parts.values()), bias=bias)
        self.parts: Mapping[str, int] = MappingProxyType(dict(parts))

    def shards(self, parameter: str) -> Mapping[ShardId, Tensor]:
        """The view of each part in `weight` or `bias`, in stacking order."""
        return dict(zip(self.parts, self.split(self.get_parameter(parameter), dim=0), strict=True))

    def split(self, packed: Tensor, dim: int = -1) -> tuple[Tensor, ...]:
        """Views of the parts of an output [rows, sum of parts]."""
        return torch.split(packed, list(self.parts.values()), dim=dim)
