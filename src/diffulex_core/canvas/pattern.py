"""Visibility of fixed-length generation: every row of the canvas sees every other."""

from __future__ import annotations

import attrs
import numpy as np

from diffulex_core.pattern import AttentionPattern, Extent, IntArray


@attrs.frozen(kw_only=True)
class FullCanvas:
    """Every row sees the whole span, prompt and masks, before and behind it.

    Any token may change the K/V of any other, so nothing is final before the end and no page is shared. Blocks have no
    part in it; `block_size` only says what pages are made of.
    """

    block_size: int
    two_phase: bool = attrs.field(default=False, init=False)

    def key_end(self, positions: IntArray, extent: Extent) -> IntArray:
        return np.full_like(positions, extent.end)

    def key_start(self, positions: IntArray, extent: Extent, window: int) -> IntArray:
        return np.maximum(positions - window + 1, 0)

    def dependency_end(self, position: int, prompt_len: int) -> int:
        """The whole sequence: further than any request goes."""
        return 1 << 62

    def sharing_scope(self, prompt_len: int) -> int:
        return 0


def full_canvas(block_size: int) -> AttentionPattern:
    """The pattern of the strategies."""
    return FullCanvas(block_size=block_size)
