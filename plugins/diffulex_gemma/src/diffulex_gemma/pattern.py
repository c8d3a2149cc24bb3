"""Who sees whom in DiffusionGemma: final rows are causal, a canvas sees itself whole. Imports no torch."""

from __future__ import annotations

import attrs
import numpy as np

from diffulex_core.plugin import Extent, IntArray


@attrs.frozen(kw_only=True)
class CausalCanvas:
    """Rows below `final_end` go through the encoder and see what precedes them; the rows from there on are a canvas.

    Every row of a canvas sees all that is encoded and the whole canvas. In a layer with a sliding window of `W` tokens
    an encoder row sees the last `W` positions with its own, and every row of a canvas alike sees the last `W - 1`
    encoded ones: the encoder's cache keeps no more, and within the canvas there is no limit.
    """

    block_size: int
    two_phase: bool = attrs.field(default=False, init=False)

    def key_end(self, positions: IntArray, extent: Extent) -> IntArray:
        """See `AttentionPattern`."""
        return np.where(positions < extent.final_end, positions + 1, extent.end)

    def key_start(self, positions: IntArray, extent: Extent, window: int) -> IntArray:
        """See `AttentionPattern`."""
        first: IntArray = np.maximum(np.minimum(positions, extent.final_end) - window + 1, 0)
        return first

    def dependency_end(self, position: int, prompt_len: int) -> int:
        """See `AttentionPattern`; only encoder rows are ever final, and they are causal."""
        return position + 1

    def sharing_scope(self, prompt_len: int) -> int:
        """See `AttentionPattern`."""
        return 0


def causal_canvas(block_size: int) -> CausalCanvas:
    """The pattern of a strategy whose canvas is one block."""
    return CausalCanvas(block_size=block_size)
