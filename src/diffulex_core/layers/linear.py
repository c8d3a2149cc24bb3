"""Linear layers and the embedding: bare weights that the loader fills, divided among the processes of a group."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import accumulate
from types import MappingProxyType
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional

from diffulex_core.context import BuildContext
from diffulex_core.distributed.ranges import Range, even_range, padded_range
from diffulex_core.sampling.facts import Facts, Wanted, facts_of
from diffulex_core.weights.types import Part, ShardId

Multiply = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""How a layer applies its weight: `x` [rows, in], `weight` [out, in] and `bias` [out] or None give [rows, out]."""


@runtime_checkable
class Multiplies(Protocol):
    """A layer whose `weight` [out, in] takes part in its forward through `multiply` alone.

    `torch.nn.functional.linear` at first; a LoRA adapter puts a product of its own in that place.
    """

    weight: nn.Parameter
    multiply: Multiply


def empty_parameter(ctx: BuildContext, *shape: int) -> nn.Parameter:
    """A parameter without values, for inference."""
    return nn.Parameter(torch.empty(shape, dtype=ctx.dtype, device=ctx.device), requires_grad=False)


def as_stored(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`torch.nn.functional.linear` of a weight that kernels read too, so that its layout must stay."""
    return functional.linear(x, weight, bias)


class Embedding(nn.Module):
    """One row for each token id, ids divided among the processes: `weight` [vocab / processes, hidden]."""

    def __init__(self, ctx: BuildContext, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self.held, rows = padded_range(vocab_size, ctx.tp)
        self.weight = empty_parameter(ctx, rows, hidden_size)
        self.tp, self.kernels = ctx.tp, ctx.kernels

    def parts(self, parameter: str) -> Mapping[ShardId | None, Part]:
        """See `weights.PartedModule`."""
        return {None: Part.of(self.get_parameter(parameter), self.held)}

    def forward(self, input_ids: Tensor) -> Tensor:
        """[rows] ids -> [rows, hidden]."""
        if self.tp.size == 1:
            return functional.embedding(input_ids, self.weight)
        local = input_ids - self.held.start
        here = (local >= 0) & (local < self.held.length)
        found = functional.embedding(local.clamp(0, len(self.weight) - 1), self.weight)
        return self.tp.sum(found.masked_fill(~here[:, None], 0))


class Linear(nn.Module):
    """`y = x Wᵀ (+ b)`, the same on every process: `weight` [out, in], `bias` [out] or None."""

    def __init__(self, ctx: BuildContext, in_features: int, out_features: int, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = empty_parameter(ctx, out_features, in_features)
        self.bias = empty_parameter(ctx, out_features) if bias else None
        self.multiply: Multiply = functional.linear

    def forward(self, x: Tensor) -> Tensor:
        """[rows, in] -> [rows, out]."""
        return self.multiply(x, self.weight, self.bias)


class RowLinear(nn.Module):
    """`y = x Wᵀ (+ b)` whose inputs are divided among the processes: `weight` [out, in / processes], `bias` [out]."""

    def __init__(self, ctx: BuildContext, in_features: int, out_features: int, *, bias: bool = False) -> None:
        super().__init__()
        self.held = even_range(in_features, ctx.tp, "the input width of a linear layer")
        self.weight = empty_parameter(ctx, out_features, self.held.length)
        self.bias = empty_parameter(ctx, out_features) if bias else None
        self.multiply: Multiply = functional.linear
        self.tp = ctx.tp

    def parts(self, parameter: str) -> Mapping[ShardId | None, Part]:
        """See `weights.PartedModule`."""
        stored = self.get_parameter(parameter)
        return {None: Part.whole(stored) if parameter == "bias" else Part.of(stored, self.held, dim=1)}

    def forward(self, x: Tensor) -> Tensor:
        """[rows, in / processes] -> [rows, out], summed over the processes."""
        if self.tp.size == 1:
            return self.multiply(x, self.weight, self.bias)
        summed = self.tp.sum(self.multiply(x, self.weight, None))
        return summed if self.bias is None else summed + self.bias

    def addend(self, x: Tensor) -> Tensor:
        """[rows, in / processes] -> [rows, out] of this process, for a caller that sums over the processes itself."""
        return self.multiply(x, self.weight, self.bias if self.tp.rank == 0 else None)


class VocabHead(nn.Module):
    """The language-model head, columns divided among the processes: `weight` [vocab / processes, hidden]."""

    def __init__(self, ctx: BuildContext, hidden_size: int, vocab_size: int, *, bias: bool = False) -> None:
        super().__init__()
        self.held, rows = padded_range(vocab_size, ctx.tp)
        self.weight = empty_parameter(ctx, rows, hidden_size)
        self.bias = empty_parameter(ctx, rows) if bias else None
        self.multiply: Multiply = functional.linear if ctx.kernels is None else as_stored
        self.kernels = ctx.kernels

    def parts(self, parameter: str) -> Mapping[ShardId | None, Part]:
        """See `weights.PartedModule`."""
        return {None: Part.of(self.get_parameter(parameter), self.held)}

    def forward(self, hidden: Tensor) -> Tensor:
        """[rows, hidden] -> [rows, vocab / processes]: logits of this process's ids, those of padding are zero."""
        return self.multiply(hidden, self.weight, self.bias)

    @property
    def selects(self) -> bool:
        """Whether a kernel searches the logits while it computes them; an adapter of the head stands in its way."""
        return self.kernels is not None and self.multiply is as_stored

    def select(self, hidden: Tensor, wanted: Wanted) -> Facts:
        """The facts of `forward(hidden)`, counted in columns of this process; see `SelectingNetwork`."""
        if self.kernels is None or not self.selects:
            return facts_of(self(hidden), wanted)
        return self.kernels.select(hidden, self.weight, self.bias, wanted.of_rows(len(hidden)))


class PackedLinear(nn.Module):
    """Several linear layers over one input, stacked along the output so that they cost one multiplication.

    Each is divided among the processes along its output. Checkpoints store the parts under their own names, or stacked.
    """

    def __init__(self, ctx: BuildContext, in_features: int, parts: Mapping[str, Range], *, bias: bool = False) -> None:
        """`parts` gives the outputs of each part that this process holds, in stacking order."""
        super().__init__()
        self.held: Mapping[str, Range] = MappingProxyType(dict(parts))
        out_features = sum(held.length for held in parts.values())
        self.weight = empty_parameter(ctx, out_features, in_features)
        self.bias = empty_parameter(ctx, out_features) if bias else None
        self.multiply: Multiply = functional.linear

    def parts(self, parameter: str) -> Mapping[ShardId | None, Part]:
        """See `weights.PartedModule`."""
        stored = self.get_parameter(parameter)
        size = sum(held.size for held in self.held.values())
        offsets = accumulate((held.size for held in self.held.values()), initial=0)
        pieces = tuple(
            Range(offset + held.start, held.length, size)
            for offset, held in zip(offsets, self.held.values(), strict=False)  # the last offset is the size
        )
        named = zip(self.held.items(), self.split(stored, dim=0), strict=True)
        return {
            None: Part(view=stored, pieces=pieces, size=size),
            **{name: Part.of(view, held) for (name, held), view in named},
        }

    def split(self, packed: Tensor, dim: int = -1) -> tuple[Tensor, ...]:
        """Views of the parts of an output [rows, sum of parts]."""
        return torch.split(packed, [held.length for held in self.held.values()], dim=dim)

    def forward(self, x: Tensor) -> Tensor:
        """[rows, in] -> [rows, sum of parts]."""
        return self.multiply(x, self.weight, self.bias)
