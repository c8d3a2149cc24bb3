"""Softmax attention by oneDNN's matrix products, which pays for many rows that see the same many keys."""

from __future__ import annotations

import torch
from torch import Tensor

from diffulex_core.layers.blocked import DTYPES, multiply, usable

_SCORES = 1 << 19
"""Most scores at a time, so that they stay in a cache and no prompt is too long."""
_MATRIX_ROWS = 64
"""Rows that a matrix product needs to be quick, even if there are more scores then."""
_WORTHWHILE = 3 << 15
"""Scores of a key/value head from which on the products save more time than it takes to begin them."""


class OneDNNAttention:
    """What torch's fused attention computes, in fp32 but for the weights of values, which have the query's dtype.

    Fused attention takes its products from MKL, which leaves half of the vector width of other makers' CPUs unused.
    Where a CPU multiplies tiles of bf16, it uses these instead, and is left to it.
    """

    def __init__(self) -> None:
        """Finds out what this torch and this CPU can do."""
        wide = "AVX512" in torch.backends.cpu.get_cpu_capability()
        tiles = torch.cpu._is_amx_tile_supported()  # noqa: SLF001, no public name
        quick = [dtype for dtype in DTYPES if wide and not (tiles and dtype is torch.bfloat16)]
        self._dtypes = tuple(dtype for dtype in quick if usable(dtype))

    def pays(self, query: Tensor, keys: Tensor) -> bool:
        """Whether `attend` is there for tensors like these, and quicker than fused attention."""
        rows, heads, head_dim = query.shape
        count, kv_heads, _ = keys.shape
        return query.dtype in self._dtypes and head_dim % 8 == 0 and rows * heads * count >= _WORTHWHILE * kv_heads

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        """Attention of rows that all see the same keys, whose bits depend on nothing but these numbers.

        Args:
            query: [rows, heads, head_dim].
            keys, values: [keys, kv_heads, head_dim] in the dtype of `query`.
            scale: factor on scores.
        Returns:
            [rows, heads, head_dim].
        """
        rows, heads, head_dim = query.shape
        count, kv_heads, _ = keys.shape
        group = heads // kv_heads
        # Copies lie in memory alike wherever the originals do, and are of the only layouts that oneDNN is quick with.
        wide_query = torch.empty(kv_heads, rows, group, head_dim)
        wide_query.copy_(query.view(rows, kv_heads, group, head_dim).transpose(0, 1)).mul_(scale)
        wide_keys = torch.empty(kv_heads, count, head_dim).copy_(keys.transpose(0, 1))
        by_head = torch.empty(kv_heads, count, head_dim, dtype=values.dtype).copy_(values.transpose(0, 1))
        out = torch.empty(rows, kv_heads, group, head_dim, dtype=query.dtype)
        step = _step(rows, group, count)
        for head in range(kv_heads):
            for start in range(0, rows, step):
                scores = multiply(wide_query[head, start : start + step].flatten(0, 1), wide_keys[head], None)
                weights = torch.softmax(scores, -1, out=scores).to(query.dtype)
                seen = multiply(weights, by_head[head].t(), None)
                out[start : start + step, head] = seen.view(-1, group, head_dim)
        return out.flatten(1, 2)


def _step(rows: int, group: int, keys: int) -> int:
    """How many rows are computed at a time: about equally many, in a multiple of eight."""
    most = max(_SCORES // keys, _MATRIX_ROWS) // group
    parts = -(-rows // max(most, 8))
    return -(-rows // (8 * parts)) * 8
