"""`flash`: one paged call of flash-attn, in which every run of rows that see the same keys is a sequence of its own."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

from diffulex_core.attention.case import AttentionCase
from diffulex_core.types import AttentionBatch

PAGE_MULTIPLE = 256
WIDEST_HEAD = 256


def probe(case: AttentionCase) -> list[str]:
    """Half precision on CUDA devices, pages of a multiple of 256 slots, and layers without a sliding window."""
    reasons = case.head_problems()
    if find_spec("flash_attn") is None:
        reasons.append("flash-attn is not installed (pip install 'diffulex-core[flash]')")
    if case.device_type != "cuda":
        reasons.append(f"it runs on CUDA devices, not on {case.device_type!r}")
    if case.dtype not in (torch.float16, torch.bfloat16):
        reasons.append(f"it computes in float16 or bfloat16, not in {case.dtype}")
    if case.page_size % PAGE_MULTIPLE:
        reasons.append(f"page_size is {case.page_size}, and its pages hold a multiple of {PAGE_MULTIPLE} slots")
    if case.head_dim > WIDEST_HEAD or case.head_dim % 8:
        reasons.append(f"head_dim is {case.head_dim}, and it serves multiples of 8 up to {WIDEST_HEAD}")
    if any(window is not None for window in case.windows):
        reasons.append("a layer has a sliding window, and it sees keys from the first on only")
    return reasons


class FlashAttention:
    """Reads `runs`, so that every call lays out sequences on the host; captured graphs cannot use it."""

    def attend(
        self, query: Tensor, key_pages: Tensor, value_pages: Tensor, batch: AttentionBatch, scale: float
    ) -> Tensor:
        """See `AttentionBackend.attend`.

        Raises:
            ValueError: a row sees keys from another one than the first on, which no accepted case asks for.
        """
        from flash_attn import flash_attn_varlen_func

        out = torch.zeros(query.shape, dtype=query.dtype, device=query.device)
        runs = [run for run in batch.runs if run.key_end > run.key_start]
        if not runs:
            return out
        if any(run.key_start for run in runs):
            raise ValueError("attn_impl='flash' cannot show rows keys from another one than the first on; use 'triton'")
        counts = torch.tensor([0, *(run.row_end - run.row_start for run in runs)])
        lengths = torch.tensor([0, *(run.key_end for run in runs)])
        rows = torch.cat([torch.arange(run.row_start, run.row_end) for run in runs]).to(query.device)
        sequences = torch.tensor([run.sequence for run in runs]).to(query.device)
        seen = flash_attn_varlen_func(
            query[rows],
            key_pages.to(query.dtype),
            value_pages.to(query.dtype),
            cu_seqlens_q=counts.cumsum(0).to(query.device, torch.int32),
            cu_seqlens_k=lengths.cumsum(0).to(query.device, torch.int32),
            max_seqlen_q=int(counts.max()),
            max_seqlen_k=int(lengths.max()),
            softmax_scale=scale,
            causal=False,
            block_table=batch.page_tables[sequences].clamp(min=0).to(torch.int32),
        )
        return out.index_copy(0, rows, seen)
