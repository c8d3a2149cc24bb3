"""Attention patterns that are wrong in one way each."""

from __future__ import annotations

import attrs
import numpy as np

from diffulex_core.pattern import Extent, IntArray


@attrs.frozen(kw_only=True)
class Blocks:
    """A row sees up to the end of its block, as it should be."""

    block_size: int = attrs.field(kw_only=False)
    two_phase: bool = False

    def key_end(self, positions: IntArray, extent: Extent) -> IntArray:
        return (positions // self.block_size + 1) * self.block_size

    def key_start(self, positions: IntArray, extent: Extent, window: int) -> IntArray:
        return np.maximum(positions - window + 1, 0)

    def dependency_end(self, position: int, prompt_len: int) -> int:
        return (position // self.block_size + 1) * self.block_size

    def sharing_scope(self, prompt_len: int) -> int:
        return 0


class OneShort(Blocks):
    """A block's last token is seen by nobody."""

    def key_end(self, positions: IntArray, extent: Extent) -> IntArray:
        return super().key_end(positions, extent) - 1


class OneShortForOthers(Blocks):
    """A block's last token is seen by itself alone."""

    def key_end(self, positions: IntArray, extent: Extent) -> IntArray:
        return np.maximum(super().key_end(positions, extent) - 1, positions + 1)


class OneLong(Blocks):
    """A row sees the first token of the next block."""

    def key_end(self, positions: IntArray, extent: Extent) -> IntArray:
        return super().key_end(positions, extent) + 1


class DependsOnLess(Blocks):
    """K/V are said to depend on nothing behind them."""

    def dependency_end(self, position: int, prompt_len: int) -> int:
        return position + 1


class WindowHidesItself(Blocks):
    """A sliding window is one token too narrow."""

    def key_start(self, positions: IntArray, extent: Extent, window: int) -> IntArray:
        return np.maximum(positions - window + 2, 0)


class WholePrompt(Blocks):
    """A prompt sees the whole of itself, and is said to depend on blocks."""

    def key_end(self, positions: IntArray, extent: Extent) -> IntArray:
        return np.where(
            positions < extent.prompt_len, np.maximum(extent.prompt_len, 0), super().key_end(positions, extent)
        )


class WindowIsOneWider(Blocks):
    """In layers with a sliding window a row sees one key too many."""

    def key_start(self, positions: IntArray, extent: Extent, window: int) -> IntArray:
        return np.maximum(positions - window, 0)


class WindowOfTheBlock(Blocks):
    """In layers with a sliding window all rows of a block see what its first row sees."""

    def key_start(self, positions: IntArray, extent: Extent, window: int) -> IntArray:
        return np.maximum(positions // self.block_size * self.block_size - window + 1, 0)


class OneShortForStored(Blocks):
    """In final rows a block's last token is seen by itself alone."""

    def key_end(self, positions: IntArray, extent: Extent) -> IntArray:
        ends = super().key_end(positions, extent)
        return np.where(positions < extent.final_end, np.maximum(ends - 1, positions + 1), ends)
