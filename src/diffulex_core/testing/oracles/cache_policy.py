"""What the kept rows of a cache policy must be, said with plain lists."""

from __future__ import annotations

from torch import Tensor, int64

from diffulex_core.types import Refresh


def reason_against(kept: Tensor, *, rows: int, kv_heads: int, refresh: Refresh) -> str | None:
    """Why this is no answer to `CachePolicy.keep`; None when it is one.

    Args:
        kept: what it returned.
        rows: of the pass.
        kv_heads: that the process holds.
        refresh: what was asked for.
    """
    if tuple(kept.shape) != (kv_heads, refresh.keep):
        return f"has the shape {tuple(kept.shape)}, expected {(kv_heads, refresh.keep)}"
    if kept.dtype != int64:
        return f"is {kept.dtype}, expected torch.int64"
    region = range(refresh.start, refresh.end)
    for head, chosen in enumerate(kept.tolist()):
        if chosen != sorted(set(chosen)):
            return f"is not ascending for KV head {head}: {chosen}"
        if wrong := [row for row in chosen if not 0 <= row < rows]:
            return f"names the row {wrong[0]} of {rows} for KV head {head}"
        if wrong := [row for row in chosen if row in region]:
            return f"names the row {wrong[0]} for KV head {head}, which is in the region {region}"
        if not refresh.per_head and chosen != kept[0].tolist():
            return f"differs between KV heads although per_head is False: {kept.tolist()}"
    return None
