"""Slots in the order in which a grouped matrix product takes them."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from diffulex_core.attention.triton.tiles import power_of_two
from diffulex_core.kernels.moe.contract import live_ids

SLOTS_AT_ONCE = 1024


@attrs.define(kw_only=True, eq=False)  # torch.compile cannot follow the constructor of a frozen one
class Arrangement:
    """Slots sorted by expert, every expert's run of rows padded to whole tiles.

    Attributes:
        slot_of_row: [tiles * tile] int64 slot (row * slots + place) that each padded row computes; -1 for padding.
        expert_of_tile: [tiles] int32 expert of each tile; -1 where there is nothing to compute.
    """

    slot_of_row: Tensor
    expert_of_tile: Tensor


def arrange(ids: Tensor, weights: Tensor, experts: int, tile: int) -> Arrangement:
    """Sort and pad without waiting for the device: there are as many tiles as there could be, some of them idle.

    Args:
        ids: [rows, slots] int32 expert of each slot, -1 = none.
        weights: [rows, slots] float32; a slot of weight 0 has no expert.
        experts: how many there are.
        tile: rows that one program of the product computes.
    """
    chosen = live_ids(ids, weights).flatten().long()
    chosen = chosen.where(chosen >= 0, experts)
    order = chosen.sort(stable=True).indices
    counts = torch.zeros(experts + 1, dtype=torch.int64, device=ids.device)
    counts.scatter_add_(0, chosen, torch.ones_like(chosen))
    tiles = (counts + tile - 1) // tile
    ends = tiles[:experts].cumsum(0)
    most = _most_tiles(len(chosen), experts, tile)
    by_expert = chosen[order]
    rank = torch.arange(len(chosen), device=ids.device) - (counts.cumsum(0) - counts)[by_expert]
    row = (tiles.cumsum(0) - tiles)[by_expert] * tile + rank
    slot_of_row = torch.full((most * tile + 1,), -1, dtype=torch.int64, device=ids.device)
    slot_of_row[row.where(by_expert < experts, most * tile)] = order  # those without an expert share the last one
    owner = torch.searchsorted(ends, torch.arange(most, device=ids.device), right=True)
    return Arrangement(slot_of_row=slot_of_row[:-1], expert_of_tile=owner.where(owner < experts, -1).int())


def arrange_on_device(ids: Tensor, weights: Tensor, experts: int, tile: int) -> Arrangement:
    """The same in two launches of Triton kernels."""
    from diffulex_core.kernels.moe.fused_kernels import count_slots, place_slots

    ids, weights, count = ids.contiguous(), weights.contiguous(), ids.numel()
    most = _most_tiles(count, experts, tile)
    counts = torch.empty(experts, dtype=torch.int32, device=ids.device)
    slot_of_row = torch.empty(most * tile, dtype=torch.int64, device=ids.device)
    expert_of_tile = torch.empty(most, dtype=torch.int32, device=ids.device)
    if count:
        some = min(SLOTS_AT_ONCE, power_of_two(count))
        with torch.cuda.device_of(ids):
            count_slots[(experts,)](ids, weights, counts, count, some=some)
            place_slots[(experts + 1,)](
                ids, weights, counts, slot_of_row, expert_of_tile, count, most, experts,
                tile=tile, width=power_of_two(experts), some=some,
            )  # fmt: skip
    return Arrangement(slot_of_row=slot_of_row, expert_of_tile=expert_of_tile)


def _most_tiles(slots: int, experts: int, tile: int) -> int:
    return slots // tile + min(experts, slots)
