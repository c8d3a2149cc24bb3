"""torch's fused attention of rows that see the same keys, or what a mask lets them see."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_ALIGNMENT = 64
"""Bytes. Where data begins elsewhere, kernels may use other instructions, with other last bits."""


def fused(query: Tensor, keys: Tensor, values: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """Attention of some rows.

    Query heads that share a KV head become rows of that head, so that keys are not expanded.

    Args:
        query: [rows, heads, head_dim].
        keys, values: [keys, kv_heads, head_dim].
        scale: factor on scores.
        mask: [rows, keys] that is added to scores, in the dtype of `query`; None = every row sees every key.
    Returns:
        [rows, heads, head_dim].
    """
    rows, heads, head_dim = query.shape
    kv_heads = keys.shape[1]
    group = heads // kv_heads
    if group == 1 and aligned(query):
        packed = query.transpose(0, 1)[None]
    else:
        grouped = query.view(rows, kv_heads, group, head_dim).permute(1, 2, 0, 3)
        packed = grouped.clone(memory_format=torch.contiguous_format).view(1, kv_heads, -1, head_dim)
    attended = functional.scaled_dot_product_attention(
        packed,
        keys.transpose(0, 1)[None],
        values.transpose(0, 1)[None],
        attn_mask=None if mask is None else mask.repeat(group, 1),
        scale=scale,
    )
    return attended.view(kv_heads, group, rows, head_dim).permute(2, 0, 1, 3).flatten(1, 2)


def aligned(rows: Tensor) -> bool:
    """Whether each of the rows begins at an aligned address, whichever of them comes first."""
    return (rows.stride(0) * rows.element_size()) % _ALIGNMENT == 0 and rows.data_ptr() % _ALIGNMENT == 0
