"""What changed in a canvas between two forwards."""

from __future__ import annotations

from typing import TypeVar

import attrs
import numpy as np

from diffulex_core.plugin import BoolArray, Canvas, IntArray

A = TypeVar("A", IntArray, BoolArray)


@attrs.frozen(kw_only=True, eq=False)
class Delta:
    """Changes of one forward; positions count from the answer's first token.

    Attributes:
        opened: lengths of the blocks that entered behind those before.
        written: [n] positions that show another token than before, ascending; `tokens` [n] shows which.
        erased: [n] positions that show none any more, ascending.
    """

    opened: tuple[int, ...]
    written: IntArray
    tokens: IntArray
    erased: IntArray


class CanvasWatch:
    """Compares the canvases of one request."""

    def __init__(self, *, drafts: bool) -> None:
        """`drafts`: undecided positions show tokens worth seeing (families without a mask token)."""
        self._drafts = drafts
        self._tokens: IntArray = np.empty(0, dtype=np.int64)
        self._shown: BoolArray = np.empty(0, dtype=np.bool_)
        self._opened = 0
        """Positions of the blocks that were opened."""

    def update(self, canvas: Canvas) -> Delta:
        """The changes since the canvas before, at first since an empty one."""
        shown = np.ones_like(canvas.decided) if self._drafts else canvas.decided
        width = max(len(canvas.tokens), len(self._tokens))
        tokens, before = _widened(canvas.tokens, width), _widened(self._tokens, width)
        now, then = _widened(shown, width), _widened(self._shown, width)
        written = np.flatnonzero(now & (~then | (tokens != before)))
        erased = np.flatnonzero(then & ~now)
        self._tokens, self._shown = canvas.tokens, shown
        return Delta(opened=self._open(canvas), written=written, tokens=tokens[written], erased=erased)

    def _open(self, canvas: Canvas) -> tuple[int, ...]:
        """Lengths of new blocks. The last one ends where the canvas ends, and each begins a block size before its end.

        The first may be shorter: it holds the end of the prompt too. A canvas that lost its last block, as a preempted
        one may, and gets it back has opened nothing.
        """
        end, lengths = len(canvas.tokens), []
        while end > self._opened:
            begin = max(self._opened, end - canvas.block_size)
            lengths.append(end - begin)
            end = begin
        self._opened = max(self._opened, len(canvas.tokens))
        return tuple(reversed(lengths))


def _widened(values: A, width: int) -> A:
    """The values and as many zeros as make up the width."""
    return np.concatenate((values, np.zeros(width - len(values), dtype=values.dtype)))
