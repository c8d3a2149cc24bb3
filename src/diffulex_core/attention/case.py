"""What an attention backend is asked to serve."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    import torch


@attrs.frozen(kw_only=True)
class AttentionCase:
    """The shapes and types of one engine's attention; backends answer with the reasons they cannot serve it.

    Attributes:
        device_type: "cpu", "cuda" ...
        dtype: of queries, keys and values.
        head_dim, num_heads, num_kv_heads: of a layer.
        page_size: slots of a page.
        block_size: tokens of a block.
        windows: sliding-window width of each layer kind, None for full attention.
    """

    device_type: str
    dtype: torch.dtype
    head_dim: int
    num_heads: int
    num_kv_heads: int
    page_size: int
    block_size: int
    windows: tuple[int | None, ...] = (None,)

    def head_problems(self) -> list[str]:
        """Reason that no grouped-query backend can serve these heads, if there is one."""
        if self.num_heads % self.num_kv_heads:
            return [f"{self.num_heads} query heads cannot share {self.num_kv_heads} key/value heads evenly"]
        return []
