"""Attention visibility as integers: every query row sees one contiguous range of keys.

Positions are absolute (0 is the first prompt token), `B` is the block size, `P` the prompt length and
`E(a) = (a // B + 1) * B` the end of the block that holds position `a`.
"""

from __future__ import annotations

import enum
from typing import Protocol, runtime_checkable

import attrs
import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
"""Whole numbers on the host: token ids, positions, slots, page ids."""


class Phase(enum.Enum):
    """Which visibility rule the rows of a window follow; only two-phase patterns tell them apart."""

    PREFILL = "prefill"
    DECODE = "decode"


@attrs.frozen(kw_only=True)
class Extent:
    """What a pattern knows of the spans that rows belong to.

    Each number is one for all rows, or [rows] with one for each: numpy's arithmetic does not tell them apart.

    Attributes:
        prompt_len: length of the request's prompt.
        phase: which visibility rule applies to all of the rows.
        final_end: rows below this position store K/V that will not change again; rows from it on are provisional.
        end: position after the last key that may be seen, which is the last row unless the span says otherwise.
    """

    prompt_len: int | IntArray
    phase: Phase
    final_end: int | IntArray
    end: int | IntArray


@runtime_checkable
class AttentionPattern(Protocol):
    """Who sees whom, and which tokens a stored key/value pair depends on. Pure integers, no tensors."""

    @property
    def block_size(self) -> int:
        """Tokens per block; windows start and end on multiples of it."""
        ...

    @property
    def two_phase(self) -> bool:
        """Whether the whole prompt must be one forward, under its own visibility (`Phase.PREFILL`)."""
        ...

    def key_end(self, positions: IntArray, extent: Extent) -> IntArray:
        """[rows] exclusive end of the keys that each row sees; the runner cuts it at the end of the span."""
        ...

    def key_start(self, positions: IntArray, extent: Extent, window: int) -> IntArray:
        """[rows] first key that each row sees in layers with a sliding window of `window` tokens."""
        ...

    def dependency_end(self, position: int, prompt_len: int) -> int:
        """Exclusive end of the tokens that the final K/V at `position` depends on.

        It decides where a prefill may be cut and what a shared page's key must cover.
        """
        ...

    def sharing_scope(self, prompt_len: int) -> int:
        """Requests may share pages only when this number is equal for both."""
        ...


@attrs.frozen(kw_only=True)
class BlockCausal:
    """A row sees everything up to the end of its own block (multi_bd; decode of most strategies).

    Attributes:
        block_size: tokens per block.
        two_phase: prefill and decode see the same.
    """

    block_size: int
    two_phase: bool = attrs.field(default=False, init=False)

    def key_end(self, positions: IntArray, extent: Extent) -> IntArray:
        return (positions // self.block_size + 1) * self.block_size

    def key_start(self, positions: IntArray, extent: Extent, window: int) -> IntArray:
        return np.maximum(positions - window + 1, 0)

    def dependency_end(self, position: int, prompt_len: int) -> int:
        return (position // self.block_size + 1) * self.block_size

    def sharing_scope(self, prompt_len: int) -> int:
        return 0


@attrs.frozen(kw_only=True)
class FullPrefix:
    """Prompt rows see the whole prompt and nothing else, the rest is block-causal (d2f).

    In prefill every row below `P` ends at `P`. In decode only whole prompt blocks keep that view (they are not fed
    again); prompt tokens that share a block with the answer see to the end of that block.

    Attributes:
        block_size: tokens per block.
        two_phase: prefill and decode see differently.
    """

    block_size: int
    two_phase: bool = attrs.field(default=True, init=False)

    def key_end(self, positions: IntArray, extent: Extent) -> IntArray:
        block_end = (positions // self.block_size + 1) * self.block_size
        if extent.phase is Phase.DECODE:
            return block_end
        return np.where(positions < extent.prompt_len, extent.prompt_len, block_end)

    def key_start(self, positions: IntArray, extent: Extent, window: int) -> IntArray:
        return np.maximum(positions - window + 1, 0)

    def dependency_end(self, position: int, prompt_len: int) -> int:
        if position < prompt_len // self.block_size * self.block_size:
            return prompt_len
        return (position // self.block_size + 1) * self.block_size

    def sharing_scope(self, prompt_len: int) -> int:
        return prompt_len
