"""The block state machine: tokens of one sequence, block by block, with incremental counters."""

from __future__ import annotations

import enum
from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from diffulex_core.pattern import IntArray
from diffulex_core.types import BoolArray


class BlockState(enum.Enum):
    """Where a running block is. Blocks before the buffer are stored, blocks after it do not exist yet."""

    ACTIVE = "active"
    """Being denoised."""
    TO_CACHE = "to_cache"
    """No token changes any more; the next forward stores its K/V and the block leaves the buffer."""


class Revision(NamedTuple):
    """What a step made of the last blocks of a buffer: a tuple, because there is one for each request of a step.

    Attributes:
        tokens, decided: [n] of the blocks' positions.
        masks: undecided positions of each block.
        frontier: all positions before this one are decided.
        open: complete blocks that may still change.
        first_stop: first position of the answer in them that holds a stop token; None = there is none.
    """

    tokens: IntArray
    decided: BoolArray
    masks: list[int]
    frontier: int
    open: Collection[int]
    first_stop: int | None


class BlockTable:
    """Tokens of a sequence and its buffer of running blocks.

    The buffer holds the consecutive blocks `head .. head + len(states) - 1`. Whether a position is decided is a bit of
    its own, never read off the token's value. All arrays are allocated once, `capacity` tokens long.
    """

    def __init__(self, prompt: IntArray, *, block_size: int, capacity: int, fill_token: int) -> None:
        """Prompt blocks that are full lie before the buffer; a partly filled one is its first, ACTIVE block."""
        self.block_size = block_size
        self.fill_token = fill_token
        self._prompt_len = len(prompt)
        self.tokens: IntArray = np.full(capacity, fill_token, dtype=np.int64)
        self.tokens[: len(prompt)] = prompt
        self._positions: IntArray = np.arange(capacity)
        self.decided: BoolArray = np.zeros(capacity, dtype=np.bool_)
        self.decided[: len(prompt)] = True
        self.masks: list[int] = [block_size] * (capacity // block_size)
        full, rest = divmod(len(prompt), block_size)
        self.masks[:full] = [0] * full
        self.head = full
        self.start = self.end = full * block_size
        """First position of the buffer, and the one after its last."""
        self.states: list[BlockState] = []
        self.frontier = len(prompt)
        """All positions before this one are decided."""
        if rest:
            self.masks[full] = block_size - rest
            self.activate()

    def progress(self, block: int) -> float:
        """Share of decided positions of a block; prompt tokens count."""
        return (self.block_size - self.masks[block]) / self.block_size

    def masks_from(self, start: int, end: int) -> list[int]:
        """Undecided positions of the block before `start`, 0 where there is none, and of those up to `end`."""
        first, last = start // self.block_size, end // self.block_size
        return self.masks[first - 1 : last] if first else [0, *self.masks[:last]]

    def open_positions(self, blocks: range) -> IntArray:
        """[n] undecided positions of consecutive blocks, ascending."""
        inside = slice(blocks.start * self.block_size, blocks.stop * self.block_size)
        return self._positions[inside][~self.decided[inside]]

    def editable_positions(self, block: int) -> IntArray:
        """[n] positions of a block that are not prompt, ascending."""
        begin = block * self.block_size
        return self._positions[max(begin, self._prompt_len) : begin + self.block_size].copy()

    def activate(self) -> None:
        """Append one block to the buffer."""
        self.states.append(BlockState.ACTIVE)
        self.end += self.block_size

    def decide(self, positions: IntArray, tokens: IntArray) -> None:
        """Write tokens where none is decided yet.

        Raises:
            ValueError: a position is decided already or lies outside the buffer; nothing changed.
        """
        every = positions.tolist()
        if not every:
            return
        if min(every) < self.start or max(every) >= self.end or len(set(every)) != len(every):
            raise ValueError(f"positions {every} are not all undecided positions of running blocks")
        self.fill(positions, tokens)

    def fill(self, positions: IntArray, tokens: IntArray) -> None:
        """As `decide`, for positions that are known to be different and of running blocks."""
        # Every position is decided once, so what is done for each costs an answer no more than its length.
        decided, masks, size, every = self.decided, self.masks, self.block_size, positions.tolist()
        if True in decided[positions].tolist():
            raise ValueError(f"positions {every} are not all undecided positions of running blocks")
        self.tokens[positions] = tokens
        decided[positions] = True
        for position in every:
            masks[position // size] -= 1
        frontier, end = self.frontier, self.end
        while frontier < end and decided[frontier]:
            frontier += 1
        self.frontier = frontier

    def write(self, positions: IntArray, tokens: IntArray) -> None:
        """Set tokens, whether one is decided already or not.

        Raises:
            ValueError: a position is prompt or lies outside the buffer; nothing changed.
        """
        self._check_editable(positions)
        decided = self.decided[positions]
        fresh = ~decided
        self.tokens[positions[decided]] = tokens[decided]
        self.decide(positions[fresh], tokens[fresh])

    def revise(self, revision: Revision) -> None:
        """Take over what became of the last blocks of the buffer; positions of the prompt are as they were."""
        end = self.end
        begin = end - len(revision.tokens)
        self.tokens[begin:end] = revision.tokens
        self.decided[begin:end] = revision.decided
        self.masks[begin // self.block_size : end // self.block_size] = revision.masks
        self.frontier = revision.frontier

    def reopen(self, positions: IntArray) -> None:
        """Make decided positions undecided again.

        Raises:
            ValueError: a position is prompt, undecided, or lies outside the buffer; nothing changed.
        """
        self._check_editable(positions)
        if not self.decided[positions].all():
            raise ValueError(f"positions {positions.tolist()} are not all decided")
        self.tokens[positions] = self.fill_token
        self.decided[positions] = False
        for block in (positions // self.block_size).tolist():
            self.masks[block] += 1
        self.frontier = min([self.frontier, *positions.tolist()])

    def settle(self, open_blocks: Collection[int] = ()) -> None:
        """Move blocks on at the end of a step: stored blocks leave, complete ones wait to be stored.

        A block becomes TO_CACHE only when its predecessor is TO_CACHE or stored, so blocks leave in order.

        Args:
            open_blocks: complete blocks that may still change, and therefore stay ACTIVE.
        """
        index = 0
        while index < len(self.states):
            if self.states[index] is BlockState.TO_CACHE:
                del self.states[index]
                self.head += 1
                self.start += self.block_size
            elif self.masks[self.head + index] == 0 and self.head + index not in open_blocks:
                self.states[index] = BlockState.TO_CACHE
                index += 1
            else:
                return

    def _check_editable(self, positions: IntArray) -> None:
        """Raise ValueError unless all positions are answer positions of running blocks."""
        if len(positions) and (positions.min() < max(self.start, self._prompt_len) or positions.max() >= self.end):
            raise ValueError(f"positions {positions.tolist()} are not all answer positions of running blocks")
