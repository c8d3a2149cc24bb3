"""`torch_cpu`: each run of rows that see the same keys by torch's fused attention, or by larger matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from diffulex_core.attention.case import AttentionCase
from diffulex_core.attention.fused import aligned, fused
from diffulex_core.attention.onednn import OneDNNAttention
from diffulex_core.attention.staircase import attend_tile, tiles
from diffulex_core.types import AttentionBatch, RowRun


def probe(case: AttentionCase) -> list[str]:
    """CPU tensors only."""
    reasons = case.head_problems()
    if case.device_type != "cpu":
        reasons.append(f"it runs on the CPU only, not on {case.device_type!r}")
    return reasons


class TorchCPU:
    """All rows of a run see the same keys, so that it needs no mask; causal rows, runs of a row each, go by tiles.

    A run or tile is computed alone, and its keys lie in memory like those of any other: in place where a sequence's
    pages follow one another, else in a copy. So its bits do not depend on other sequences.
    """

    def __init__(self) -> None:
        """Finds out what this CPU can do."""
        self._products = OneDNNAttention()

    def attend(
        self, query: Tensor, key_pages: Tensor, value_pages: Tensor, batch: AttentionBatch, scale: float
    ) -> Tensor:
        """See `AttentionBackend.attend`."""
        out = torch.zeros(query.shape, dtype=query.dtype)
        for _, group in groupby(batch.runs, key=lambda run: run.sequence):
            runs = [run for run in group if run.key_end > run.key_start]
            if not runs:
                continue
            first = min(run.key_start for run in runs)
            keys, values = (_read(pages, batch, runs, first).to(query.dtype) for pages in (key_pages, value_pages))
            for tile in tiles(runs):
                rows = slice(tile[0].row_start, tile[-1].row_end)
                if len(tile) > 1:
                    out[rows] = attend_tile(query[rows], keys, values, first, tile, scale)
                    continue
                seen = slice(tile[0].key_start - first, tile[0].key_end - first)
                attend = self._products.attend if self._products.pays(query[rows], keys[seen]) else fused
                out[rows] = attend(query[rows], keys[seen], values[seen], scale)
        return out


def _read(pages: Tensor, batch: AttentionBatch, runs: Sequence[RowRun], first: int) -> Tensor:
    """[slots, kv_heads, head_dim]: what the runs of one sequence see, from slot `first` on."""
    end = max(run.key_end for run in runs)
    first_page, end_page = first // batch.page_size, -(-end // batch.page_size)
    table = batch.page_tables[runs[0].sequence, first_page:end_page]
    slots = slice(first - first_page * batch.page_size, end - first_page * batch.page_size)
    held = table.tolist()
    if held == list(range(held[0], held[0] + len(held))) and aligned(pages):
        return pages[held[0] : held[0] + len(held)].flatten(0, 1)[slots]
    return pages[table].flatten(0, 1)[slots]
