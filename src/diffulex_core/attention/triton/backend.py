"""`triton`: one launch for all rows of a batch, two where few rows see many keys."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffulex_core.attention.case import AttentionCase
from diffulex_core.attention.triton.tiles import choose_splits, choose_tiles, power_of_two
from diffulex_core.kernels.on_triton import DTYPES, Processors, precision, processors_of, reasons_against, widened
from diffulex_core.types import AttentionBatch

WIDEST_HEAD = 512


def probe(case: AttentionCase) -> list[str]:
    """Any page size and grouping, heads of up to 512; CUDA devices, or the CPU in Triton's interpreter."""
    reasons = [*case.head_problems(), *reasons_against(case.device_type)]
    if case.head_dim > WIDEST_HEAD:
        reasons.append(f"head_dim is {case.head_dim}, and it serves at most {WIDEST_HEAD}")
    if case.dtype not in DTYPES:
        reasons.append(f"it computes in float16, bfloat16 or float32, not in {case.dtype}")
    return reasons


class PagedTriton:
    """Reads the tensors of `AttentionBatch` only, never `runs`, and takes all sizes from shapes.

    So a captured graph serves every batch of its shape, and nothing waits for the device.
    """

    def __init__(self, processors: Callable[[torch.device], Processors] = processors_of) -> None:
        """`processors` tells what a device has: how many share the work, and what fits into one."""
        self._processors = processors

    def attend(
        self, query: Tensor, key_pages: Tensor, value_pages: Tensor, batch: AttentionBatch, scale: float
    ) -> Tensor:
        """See `AttentionBackend.attend`."""
        from diffulex_core.attention.triton.kernels import attend_tiles, join_parts

        query, key_pages, value_pages = (_rows_in_order(each) for each in (query, key_pages, value_pages))
        rows, heads, head_dim = query.shape
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        if rows == 0:
            return out
        kv_heads, (sequences, columns) = key_pages.shape[2], batch.page_tables.shape
        group, width = heads // kv_heads, max(16, power_of_two(head_dim))
        processors = self._processors(query.device)
        tiles = choose_tiles(
            rows=rows, sequences=sequences, group=group, head_dim=head_dim, item_bytes=query.element_size(),
            shared_bytes=processors.shared_bytes,
        )  # fmt: skip
        grid = (-(-rows // tiles.rows), kv_heads * -(-group // tiles.heads))
        splits = choose_splits(grid[0] * grid[1], processors.count, columns * batch.page_size)
        divided = splits > 1
        parts = torch.empty((splits, *out.shape), dtype=torch.float32, device=out.device) if divided else out
        log_sums = torch.empty((splits, rows, heads) if divided else 1, dtype=torch.float32, device=out.device)
        with torch.cuda.device_of(query):
            attend_tiles[(*grid, splits)](
                query, key_pages, value_pages, batch.key_start, batch.key_end, batch.row_sequence, batch.page_tables,
                parts, log_sums, rows, heads, splits, scale,
                *query.stride()[:2], *key_pages.stride()[:3], *value_pages.stride()[:3], batch.page_tables.stride(0),
                divided=divided, group=group, head_dim=head_dim, page_size=batch.page_size, width=width,
                lanes=tiles.lanes, tile_rows=tiles.rows, tile_heads=tiles.heads, keys=tiles.keys,
                precision=precision(query.dtype), widen=widened(query.dtype),
                num_warps=tiles.warps, num_stages=tiles.stages,
            )  # fmt: skip
            if divided:
                join_parts[(rows * heads,)](
                    parts, log_sums, out, rows, heads, splits, head_dim=head_dim, width=width, num_warps=1
                )
        return out


def _rows_in_order(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
