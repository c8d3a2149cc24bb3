"""The layers' kernels in plain torch, an operation at a time: what each means, and what it is held against."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from diffulex_core.kernels.case import KernelCase
from diffulex_core.kernels.layers.contract import HeadNorms
from diffulex_core.layers.activations import ACTIVATIONS
from diffulex_core.layers.moe.routing import choose
from diffulex_core.layers.moe.spec import Activation, MoESpec
from diffulex_core.layers.norm import normed
from diffulex_core.layers.rope import Rotation
from diffulex_core.sampling.facts import Facts, Wanted, facts_of

_LEAST_NORM = 1e-12


class TorchLayers:
    """`LayerKernels` that run wherever torch does. An engine runs the layers' own code in their place (`layer_impl`
    "torch"), which says the same and does not look at slots in every layer."""

    def reasons(self, case: KernelCase) -> list[str]:
        """They run everywhere."""
        return []

    def priority(self, case: KernelCase) -> int:
        """Behind the layers' own code."""
        return -10

    def normed(self, x: Tensor, weight: Tensor | None, eps: float, *, wide: bool = False) -> Tensor:
        """See `LayerKernels`."""
        return normed(x, weight, eps, wide=wide)

    def add_and_norm(
        self, x: Tensor, addend: Tensor, weight: Tensor, eps: float, *, wide: bool = False
    ) -> tuple[Tensor, Tensor]:
        """See `LayerKernels`."""
        total = x + addend
        return total, normed(total, weight, eps, wide=wide)

    def norm_and_add(self, x: Tensor, addend: Tensor, weight: Tensor, eps: float, *, wide: bool = False) -> Tensor:
        """See `LayerKernels`."""
        return x + normed(addend, weight, eps, wide=wide)

    def gated(self, packed: Tensor, activation: Activation) -> Tensor:
        """See `LayerKernels`."""
        gate, up = packed.chunk(2, dim=-1)
        return ACTIVATIONS[activation](gate) * up

    def turn_and_store(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        norms: HeadNorms | None,
        rotation: Rotation,
        slots: Tensor,
        key_pages: Tensor,
        value_pages: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `LayerKernels`."""
        if norms is not None:
            query = normed(query, norms.query, norms.eps, wide=norms.wide)
            key = normed(key, norms.key, norms.eps, wide=norms.wide)
            value = normed(value, None, norms.eps) if norms.values else value
        query, key = rotation(query), rotation(key)
        rows = (slots >= 0).nonzero().squeeze(1)
        for pages, fresh in ((key_pages, key), (value_pages, value)):
            pages.view(-1, *pages.shape[2:])[slots[rows]] = fresh[rows].to(pages.dtype)
        return query, key, value

    def route(self, logits: Tensor, bias: Tensor | None, spec: MoESpec) -> tuple[Tensor, Tensor]:
        """See `LayerKernels`."""
        return choose(logits, bias, spec)

    def blend(self, table: Tensor, ids: Tensor, weights: Tensor, match_norm: Tensor) -> Tensor:
        """See `LayerKernels`."""
        embedded = table[ids].float()  # [rows, n, hidden]
        total = (weights[..., None] * embedded).sum(1)
        wanted = (weights * embedded.norm(dim=2)).sum(1)
        scale = torch.where(match_norm, wanted / total.norm(dim=1).clamp(min=_LEAST_NORM), 1.0)
        return (total * scale[:, None]).to(table.dtype)

    def select(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, wanted: Wanted) -> Facts:
        """See `LayerKernels`; the logits exist here."""
        return facts_of(functional.linear(hidden, weight, bias), wanted)
