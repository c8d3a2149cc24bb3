"""Bringing an adapter's updates into a network: merged into the weights, or as a product beside them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import attrs
import torch
from torch import Tensor
from torch.nn import functional

from diffulex_core.layers.linear import Multiplies
from diffulex_core.weights.lora.plan import Update


@attrs.frozen(kw_only=True, eq=False)
class LowRankProduct:
    """`x Wᵀ (+ bias) + (x downᵀ) upᵀ`: the adapters of one layer, those of a packed layer's parts side by side.

    Attributes:
        down: [ranks, in], the A's one below the other.
        up: [out, ranks], each part's `scale · B` where its outputs and its ranks meet, else zero.
    """

    down: Tensor
    up: Tensor

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """[rows, in] -> [rows, out]."""
        return functional.linear(x, weight, bias).addmm_(functional.linear(x, self.down), self.up.T)


def merge(updates: Iterable[Update]) -> None:
    """`W + scale · B A`, computed in fp32 and rounded once to the weight's dtype."""
    with torch.no_grad():
        for update in updates:
            view = update.site.part.view
            a, b = (matrix.to(view.device, torch.float32) for matrix in (update.a, update.b))
            view.copy_(torch.addmm(view.float(), b, a, alpha=update.scale))


def attach(updates: Sequence[Update]) -> None:
    """Let each layer add the products of its parts; `unattachable` must have found nothing."""
    layers: dict[int, tuple[Multiplies, list[Update]]] = {}
    for update in updates:
        layer = update.site.layer()
        assert layer is not None, "updates are checked before"
        layers.setdefault(id(layer), (layer, []))[1].append(update)
    for layer, own in layers.values():
        layer.multiply = _product(layer.weight, own)


def unattachable(updates: Iterable[Update]) -> list[str]:
    """A sentence for each layer that cannot compute a product beside its weight."""
    return [
        f"{update.site.path!r} ({update.site.label}) cannot run an adapter beside its weight;"
        " add it to the weights with pre_merge_lora=True."
        for update in updates
        if update.site.layer() is None
    ]


def _product(weight: Tensor, updates: Sequence[Update]) -> LowRankProduct:
    ranks = sum(len(update.a) for update in updates)
    down = weight.new_zeros(ranks, weight.shape[1])
    up = weight.new_zeros(weight.shape[0], ranks)
    end = 0
    for update in updates:
        rank, first = len(update.a), update.site.first_output()
        down[end : end + rank] = update.a
        up[first : first + len(update.b), end : end + rank] = update.scale * update.b.float()
        end += rank
    return LowRankProduct(down=down, up=up)
