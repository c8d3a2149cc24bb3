"""Which experts a token visits and how much each of them counts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from diffulex_core.context import BuildContext
from diffulex_core.layers.activations import sigmoid
from diffulex_core.layers.moe.spec import MoESpec

LEAST_SUM = 1e-20
"""Added to the sum of sigmoid scores before weights are divided by it."""


class Router(nn.Module):
    """Scores every expert in fp32 and picks the best: `weight` [experts, hidden], `bias` [experts] or None.

    Both are fp32 whatever the engine's dtype and stay so when the module is cast. All processes hold all of them.
    """

    bias: Tensor | None

    def __init__(self, ctx: BuildContext, hidden_size: int, spec: MoESpec) -> None:
        super().__init__()
        self.spec = spec
        weight = torch.empty(spec.num_experts, hidden_size, dtype=torch.float32, device=ctx.device)
        self.weight = nn.Parameter(weight, requires_grad=False)
        bias = torch.empty(spec.num_experts, dtype=torch.float32, device=ctx.device)
        self.register_buffer("bias", bias if spec.correction_bias else None)
        self.kernels = ctx.kernels

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[rows, hidden] -> ids [rows, k] int32 and weights [rows, k] float32; see `choose`."""
        logits = nn.functional.linear(x.float(), self.weight)
        if self.kernels is not None:
            return self.kernels.route(logits, self.bias, self.spec)
        return choose(logits, self.bias, self.spec)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Router:
        def keep_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(keep_dtype, recurse)  # type: ignore[no-untyped-call]
        return self


def choose(logits: Tensor, bias: Tensor | None, spec: MoESpec) -> tuple[Tensor, Tensor]:
    """The experts of each token, best first, and their weights.

    Softmax (as in Qwen3-MoE): the k largest of `p = softmax(logits)`, divided by their sum if the spec says so.
    Sigmoid (as in DeepSeek-V3): the k largest of `s + bias` within the eligible groups, `s = sigmoid(logits)`; their
    weights are `s` without the bias, divided by `sum + 1e-20` if the spec says so and k > 1. Both times `scale`.

    Args:
        logits: [rows, experts] float32.
        bias: [experts] float32, added to the scores only to choose.
    Returns:
        ids [rows, k] int32 and weights [rows, k] float32; of equal scores the lowest id comes first.
    """
    k = spec.experts_per_token
    scores = logits.softmax(-1) if spec.router == "softmax" else sigmoid(logits)
    merit = scores if bias is None else scores + bias
    if spec.limited:
        merit = _within_best_groups(merit, spec)
    ids = best(merit, k)
    weights = scores.gather(-1, ids)
    if spec.renormalize and spec.router == "softmax":
        weights = weights / total(weights)
    elif spec.renormalize and k > 1:
        weights = weights / (total(weights) + LEAST_SUM)
    return ids.int(), weights * spec.scale


def best(merit: Tensor, k: int) -> Tensor:
    """[..., n] -> [..., k] indices of the largest, best first, ties to the lowest index (`topk` leaves them open)."""
    return merit.sort(dim=-1, descending=True, stable=True).indices[..., :k]


def total(weights: Tensor) -> Tensor:
    """[rows, k] -> [rows, 1], added from left to right, so that the bits do not depend on the number of rows."""
    summed = weights[:, :1]
    for place in range(1, weights.shape[1]):
        summed = summed + weights[:, place : place + 1]
    return summed


def _within_best_groups(merit: Tensor, spec: MoESpec) -> Tensor:
    """The same with -inf for every expert outside the `groups_kept` groups whose two best sum to the most."""
    grouped = merit.unflatten(-1, (spec.num_groups, spec.group_size))
    leaders = grouped.sort(dim=-1, descending=True).values[..., :2].sum(-1)  # [rows, groups]
    kept = torch.zeros_like(leaders, dtype=torch.bool).scatter(-1, best(leaders, spec.groups_kept), True)
    eligible: Tensor = grouped.masked_fill(~kept[..., None], -torch.inf).flatten(-2)
    return eligible
