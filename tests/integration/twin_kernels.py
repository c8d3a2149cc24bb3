"""Layer kernels as a stranger might write them, in plain torch: what each operation means, and nothing fused."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from diffulex_core.kernels.layers import HeadNorms, LayerCase
from diffulex_core.layers.activations import ACTIVATIONS
from diffulex_core.layers.moe.routing import choose
from diffulex_core.layers.moe.spec import Activation, MoESpec
from diffulex_core.layers.rope import Rotation
from diffulex_core.sampling.facts import Facts, Wanted, facts_of, joined

SPAN = 64
"""Columns of the head that are looked at together."""


class TwinKernels:
    """A sound implementation, which counts its calls."""

    calls: ClassVar[Counter[str]] = Counter()

    def reasons(self, case: LayerCase) -> list[str]:
        return [] if case.device_type == "cpu" else ["it is for tests on the CPU"]

    def priority(self, case: LayerCase) -> int:
        return -1

    def normed(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        self.calls["normed"] += 1
        wide = x.float()
        factor = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        return weight * (wide * factor).to(x.dtype)

    def add_and_norm(self, x: Tensor, addend: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        self.calls["add_and_norm"] += 1
        return x + addend, self.normed(x + addend, weight, eps)

    def gated(self, packed: Tensor, activation: Activation) -> Tensor:
        self.calls["gated"] += 1
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
    ) -> tuple[Tensor, Tensor]:
        self.calls["turn_and_store"] += 1
        if norms is not None:
            query, key = self.normed(query, norms.query, norms.eps), self.normed(key, norms.key, norms.eps)
        query, key = rotation(query), rotation(key)
        for row, slot in enumerate(slots.tolist()):
            if slot >= 0:
                key_pages.flatten(0, 1)[slot] = key[row].to(key_pages.dtype)
                value_pages.flatten(0, 1)[slot] = value[row].to(value_pages.dtype)
        return query, key

    def route(self, logits: Tensor, bias: Tensor | None, spec: MoESpec) -> tuple[Tensor, Tensor]:
        self.calls["route"] += 1
        return choose(logits, bias, spec)

    def blend(self, table: Tensor, ids: Tensor, weights: Tensor, match_norm: Tensor) -> Tensor:
        self.calls["blend"] += 1
        embedded = table[ids].float()
        total = (weights[..., None] * embedded).sum(1)
        wanted = (weights * embedded.norm(dim=2)).sum(1)
        scale = torch.where(match_norm, wanted / total.norm(dim=1).clamp(min=1e-12), 1.0)
        return (total * scale[:, None]).to(table.dtype)

    def select(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, wanted: Wanted) -> Facts:
        """A few columns at a time, so that no row of logits exists."""
        self.calls["select"] += len(hidden)
        return joined([
            facts_of(
                functional.linear(hidden, weight[at : at + SPAN], None if bias is None else bias[at : at + SPAN]),
                wanted,
                start=at,
            )
            for at in range(0, len(weight), SPAN)
        ])  # fmt: skip
