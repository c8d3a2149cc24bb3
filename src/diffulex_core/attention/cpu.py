"""`torch_cpu`: each run of rows that see the same keys by torch's fused attention, or by larger matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor
from torch.nn import functional

from diffulex_core.attention.case import AttentionCase
from diffulex_core.attention.onednn import OneDNNAttention
from diffulex_core.types import AttentionBatch, RowRun

_ALIGNMENT = 64
"""Bytes. Where data begins elsewhere, kernels may use other instructions, with other last bits."""


def probe(case: AttentionCase) -> list[str]:
    """CPU tensors only."""
    reasons = case.head_problems()
    if case.device_type != "cpu":
        reasons.append(f"it runs on the CPU only, not on {case.device_type!r}")
    return reasons


class TorchCPU:
    """No mask is needed, because all rows of a run see the same keys.

    A run is computed alone, and its keys lie in memory like those of any other: in place where a sequence's pages
    follow one another, else in a copy. So its bits do not depend on other sequences.
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
            for run in runs:
                seen = slice(run.key_start - first, run.key_end - first)
                rows = slice(run.row_start, run.row_end)
                attend = self._products.attend if self._products.pays(query[rows], keys[seen]) else _fused
                out[rows] = attend(query[rows], keys[seen], values[seen], scale)
        return out


def _read(pages: Tensor, batch: AttentionBatch, runs: Sequence[RowRun], first: int) -> Tensor:
    """[slots, kv_heads, head_dim]: what the runs of one sequence see, from slot `first` on."""
    end = max(run.key_end for run in runs)
    first_page, end_page = first // batch.page_size, -(-end // batch.page_size)
    table = batch.page_tables[runs[0].sequence, first_page:end_page]
    slots = slice(first - first_page * batch.page_size, end - first_page * batch.page_size)
    held = table.tolist()
    if held == list(range(held[0], held[0] + len(held))) and _aligned(pages):
        return pages[held[0] : held[0] + len(held)].flatten(0, 1)[slots]
    return pages[table].flatten(0, 1)[slots]


def _fused(query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """[rows, heads, head_dim] of rows that all see `keys` and `values` [keys, kv_heads, head_dim].

    Query heads that share a KV head become rows of that head, so that keys are not expanded.
    """
    rows, heads, head_dim = query.shape
    kv_heads = keys.shape[1]
    if heads == kv_heads and _aligned(query):
        packed = query.transpose(0, 1)[None]
    else:
        grouped = query.view(rows, kv_heads, heads // kv_heads, head_dim).permute(1, 2, 0, 3)
        packed = grouped.clone(memory_format=torch.contiguous_format).view(1, kv_heads, -1, head_dim)
    attended = functional.scaled_dot_product_attention(
        packed, keys.transpose(0, 1)[None], values.transpose(0, 1)[None], scale=scale
    )
    return attended.view(kv_heads, heads // kv_heads, rows, head_dim).permute(2, 0, 1, 3).flatten(1, 2)


def _aligned(rows: Tensor) -> bool:
    """Whether each of the rows begins at an aligned address, whichever of them comes first."""
    return (rows.stride(0) * rows.element_size()) % _ALIGNMENT == 0 and rows.data_ptr() % _ALIGNMENT == 0
