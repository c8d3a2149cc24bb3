"""Slots in the order in which a grouped matrix product takes them."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor


@attrs.frozen(kw_only=True, eq=False)
class Arrangement:
    """Slots sorted by expert, every expert's run of rows padded to whole tiles.

    Attributes:
        slot_of_row: [tiles * tile + 1] int64 slot (row * slots + place) that each padded row computes; -1 for padding.
            The last entry means nothing.
        expert_of_tile: [tiles] int32 expert of each tile; -1 where there is nothing to compute.
    """

    slot_of_row: Tensor
    expert_of_tile: Tensor


def arrange(ids: Tensor, experts: int, tile: int) -> Arrangement:
    """Sort and pad without waiting for the device: there are as many tiles as there could be, some of them idle.

    Args:
        ids: [rows, slots] int32 expert of each slot, -1 = none.
        experts: how many there are.
        tile: rows that one program of the product computes.
    """
    chosen = ids.flatten().long()
    chosen = chosen.where(chosen >= 0, experts)
    order = chosen.sort(stable=True).indices
    counts = torch.zeros(experts + 1, dtype=torch.int64, device=ids.device)
    counts.scatter_add_(0, chosen, torch.ones_like(chosen))
    tiles = (counts + tile - 1) // tile
    ends = tiles[:experts].cumsum(0)
    most = len(chosen) // tile + min(experts, len(chosen))
    by_expert = chosen[order]
    rank = torch.arange(len(chosen), device=ids.device) - (counts.cumsum(0) - counts)[by_expert]
    row = (tiles.cumsum(0) - tiles)[by_expert] * tile + rank
    slot_of_row = torch.full((most * tile + 1,), -1, dtype=torch.int64, device=ids.device)
    slot_of_row[row.where(by_expert < experts, most * tile)] = order
    owner = torch.searchsorted(ends, torch.arange(most, device=ids.device), right=True)
    return Arrangement(slot_of_row=slot_of_row, expert_of_tile=owner.where(owner < experts, -1).int())
