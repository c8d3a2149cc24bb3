"""The tensors behind the pages: keys and values of every layer."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from torch import Tensor

from diffulex_core.types import KVGeometry


@attrs.frozen(kw_only=True, eq=False)
class KVStore:
    """Keys and values of all pages.

    Attributes:
        key_pages, value_pages: for each layer [pages, page_size, kv_heads, head_dim].
    """

    key_pages: tuple[Tensor, ...]
    value_pages: tuple[Tensor, ...]

    @classmethod
    def allocate(
        cls,
        geometry: Sequence[KVGeometry],
        num_pages: int,
        page_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> KVStore:
        """Pages for layers of the given shapes; `num_pages * page_bytes(...)` bytes."""

        def pages() -> tuple[Tensor, ...]:
            return tuple(
                torch.zeros(num_pages, page_size, layer.num_kv_heads, layer.head_dim, dtype=dtype, device=device)
                for layer in geometry
            )

        return cls(key_pages=pages(), value_pages=pages())


def page_bytes(geometry: Sequence[KVGeometry], page_size: int, dtype: torch.dtype) -> int:
    """Bytes that one page takes over all layers."""
    return sum(2 * page_size * layer.num_kv_heads * layer.head_dim * dtype.itemsize for layer in geometry)
