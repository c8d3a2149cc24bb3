"""What kernels of the layers compute, by their definitions: in float64, a row and a head at a time."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from diffulex_core.kernels.layers import HeadNorms
from diffulex_core.layers.moe.spec import Activation, MoESpec
from diffulex_core.layers.rope import Rotation
from diffulex_core.sampling.facts import Facts, Wanted
from diffulex_core.testing.oracles.facts import facts


class ExactLayers:
    """The methods of `LayerKernels` that compute something; nothing is rounded but the head's logits."""

    def normed(self, x: Tensor, weight: Tensor | None, eps: float, *, wide: bool = False) -> Tensor:
        rows = [_unit(row, eps) for row in x.cpu().double()]
        scale = 1.0 if weight is None else weight.cpu().double()
        return torch.stack([row * scale for row in rows]) if rows else x.cpu().double()

    def add_and_norm(
        self, x: Tensor, addend: Tensor, weight: Tensor, eps: float, **named: Any
    ) -> tuple[Tensor, Tensor]:
        total = x.cpu().double() + addend.cpu().double()
        return total, self.normed(total, weight, eps)

    def norm_and_add(self, x: Tensor, addend: Tensor, weight: Tensor, eps: float, **_: Any) -> Tensor:
        return x.cpu().double() + self.normed(addend, weight, eps)

    def gated(self, packed: Tensor, activation: Activation) -> Tensor:
        size = packed.shape[1] // 2
        gate, up = packed.cpu().double()[:, :size], packed.cpu().double()[:, size:]
        return (
            torch.tensor([_activated(float(value), activation) for value in gate.flatten()], dtype=torch.float64).view(
                gate.shape
            )
            * up
        )

    def turn_and_store(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        norms: HeadNorms | None,
        rotation: Rotation,
        **_: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values; nothing is stored."""
        found = []
        weights = (None, None) if norms is None else (norms.query, norms.key)
        for heads, weight in zip((query, key), weights, strict=True):
            turned = heads.cpu().double().clone()
            for row in range(len(turned)):
                for head in range(turned.shape[1]):
                    one = turned[row, head]
                    if norms is not None and weight is not None:
                        one = _unit(one, norms.eps) * weight.cpu().double()
                    turned[row, head] = _rotated(one, rotation.cos[row, 0].tolist(), rotation.sin[row, 0].tolist())
            found.append(turned)
        values = value.cpu().double().clone()
        if norms is not None and norms.values:
            for row in values:
                for head in row:
                    head.copy_(_unit(head, norms.eps))
        return found[0], found[1], values

    def route(self, logits: Tensor, bias: Tensor | None, spec: MoESpec) -> tuple[Tensor, Tensor]:
        told = [_routed(row.tolist(), None if bias is None else bias.tolist(), spec) for row in logits.cpu()]
        shape = (len(told), spec.experts_per_token)
        ids = torch.tensor([ids for ids, _ in told], dtype=torch.int32).view(shape)
        return ids, torch.tensor([weights for _, weights in told], dtype=torch.float64).view(shape)

    def blend(self, table: Tensor, ids: Tensor, weights: Tensor, match_norm: Tensor) -> Tensor:
        out = torch.zeros(len(ids), table.shape[1], dtype=torch.float64)
        for row, total in enumerate(out):
            length = 0.0
            for token, weight in zip(ids[row].tolist(), weights[row].tolist(), strict=True):
                one = table[token].cpu().double()
                total += weight * one
                length += weight * float(one.norm())
            if bool(match_norm[row]):
                total *= length / max(float(total.norm()), 1e-12)
        return out

    def select(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, wanted: Wanted) -> Facts:
        columns = weight.cpu().double()[: wanted.columns]
        logits = hidden.cpu().double() @ columns.T
        if bias is not None:
            logits += bias.cpu().double()[: wanted.columns]
        return facts(logits.to(hidden.dtype), wanted)


def _unit(row: Tensor, eps: float) -> Tensor:
    return row / math.sqrt(math.fsum(float(value) ** 2 for value in row) / len(row) + eps)


def _activated(value: float, activation: Activation) -> float:
    if activation == "silu":
        return value / (1 + math.exp(-value))
    return value / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (value + 0.044715 * value**3)))


def _rotated(head: Tensor, cos: list[float], sin: list[float]) -> Tensor:
    out, half = head.clone(), len(cos)
    for at in range(half):
        out[at] = head[at] * cos[at] - head[at + half] * sin[at]
        out[at + half] = head[at + half] * cos[at] + head[at] * sin[at]
    return out


def _routed(logits: list[float], bias: list[float] | None, spec: MoESpec) -> tuple[list[int], list[float]]:
    if spec.router == "softmax":
        powers = [math.exp(value - max(logits)) for value in logits]
        scores = [power / math.fsum(powers) for power in powers]
    else:
        scores = [1 / (1 + math.exp(-value)) for value in logits]
    merit = {expert: score + (bias[expert] if bias else 0.0) for expert, score in enumerate(scores)}
    if spec.limited:
        merit = _of_best_groups(merit, spec)
    chosen = sorted(merit, key=lambda expert: (-round(merit[expert], 9), expert))[: spec.experts_per_token]
    weights = [scores[expert] for expert in chosen]
    if spec.renormalize and (spec.router == "softmax" or spec.experts_per_token > 1):
        total = math.fsum(weights)
        weights = [weight / total for weight in weights]
    return chosen, [weight * spec.scale for weight in weights]


def _of_best_groups(merit: dict[int, float], spec: MoESpec) -> dict[int, float]:
    def worth(group: int) -> float:
        own = [merit[group * spec.group_size + at] for at in range(spec.group_size)]
        return math.fsum(sorted(own, reverse=True)[:2])

    kept = sorted(range(spec.num_groups), key=lambda group: (-round(worth(group), 9), group))[: spec.groups_kept]
    return {expert: value for expert, value in merit.items() if expert // spec.group_size in kept}
