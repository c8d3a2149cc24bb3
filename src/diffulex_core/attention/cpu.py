"""`torch_cpu`: one fused attention call for each run of rows that see the same keys."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor
from torch.nn import functional

from diffulex_core.attention.case import AttentionCase
from diffulex_core.types import AttentionBatch, RowRun


def probe(case: AttentionCase) -> list[str]:
    """CPU tensors only."""
    reasons = case.head_problems()
    if case.device_type != "cpu":
        reasons.append(f"it runs on the CPU only, not on {case.device_type!r}")
    return reasons


class TorchCPU:
    """No mask is needed, because all rows of a run see the same keys.

    A run is computed alone, from copies with a layout of their own, so that its bits do not depend on other sequences.
    """

    def attend(
        self, query: Tensor, key_pages: Tensor, value_pages: Tensor, batch: AttentionBatch, scale: float
    ) -> Tensor:
        """See `AttentionBackend.attend`."""
        out = torch.zeros_like(query)
        for _, group in groupby(batch.runs, key=lambda run: run.sequence):
            runs = [run for run in group if run.key_end > run.key_start]
            if not runs:
                continue
            first = min(run.key_start for run in runs)
            keys, values = (_gather(pages, batch, runs, first).to(query.dtype) for pages in (key_pages, value_pages))
            for run in runs:
                seen = slice(run.key_start - first, run.key_end - first)
                rows = slice(run.row_start, run.row_end)
                out[rows] = _attend_run(query[rows], keys[seen], values[seen], scale)
        return out


def _gather(pages: Tensor, batch: AttentionBatch, runs: Sequence[RowRun], first: int) -> Tensor:
    """[slots, kv_heads, head_dim]: what the runs of one sequence see, from slot `first` on."""
    end = max(run.key_end for run in runs)
    first_page, end_page = first // batch.page_size, -(-end // batch.page_size)
    table = batch.page_tables[runs[0].sequence, first_page:end_page]
    skipped = first_page * batch.page_size
    return pages[table].flatten(0, 1)[first - skipped : end - skipped]


def _attend_run(query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """[rows, heads, head_dim] of rows that all see `keys` and `values` [keys, kv_heads, head_dim].

    Query heads that share a KV head become rows of that head, so that keys are not expanded.
    """
    rows, heads, head_dim = query.shape
    kv_heads = keys.shape[1]
    grouped = query.view(rows, kv_heads, heads // kv_heads, head_dim).permute(1, 2, 0, 3)
    packed = grouped.clone(memory_format=torch.contiguous_format).view(1, kv_heads, -1, head_dim)
    attended = functional.scaled_dot_product_attention(
        packed, keys.transpose(0, 1)[None], values.transpose(0, 1)[None], scale=scale
    )
    return attended.view(kv_heads, heads // kv_heads, rows, head_dim).permute(2, 0, 1, 3).flatten(1, 2)
