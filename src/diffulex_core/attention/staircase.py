"""Causal rows, of which each sees one key more than the one before it: a tile of them at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from diffulex_core.attention.fused import aligned, fused
from diffulex_core.types import RowRun

TILE = 32
"""Rows of a tile. A tile's first row sees a multiple of so many keys, and its own."""


def tiles(runs: Sequence[RowRun]) -> Iterator[Sequence[RowRun]]:
    """Runs of one sequence, ascending, in groups: runs that are computed alone, and causal rows of one tile each.

    Of rows in one group each sees the key behind the last one of the row before it, and begins where that one does
    or, behind a sliding window, one key later.
    """
    group = list[RowRun]()
    for run in runs:
        if group and not _goes_on(group[-1], run):
            yield group
            group = []
        group.append(run)
    if group:
        yield group


def attend_tile(
    query: Tensor, keys: Tensor, values: Tensor, first: int, rows: Sequence[RowRun], scale: float
) -> Tensor:
    """Attention of causal rows of one tile.

    It is computed as that of the whole tile, with zeros for rows and keys that are not there: so a row's bits do not
    depend on which other rows of its tile are fed along with it.

    Args:
        query: [rows, heads, head_dim].
        keys, values: [keys, kv_heads, head_dim] of the sequence from slot `first` on, at least all that the rows see.
        rows: at least two runs of a row each, as `tiles` groups them.
        scale: factor on scores.
    Returns:
        [rows, heads, head_dim].
    """
    start, last = rows[0], rows[-1]
    begin = (start.key_end - 1) // TILE * TILE
    here = slice(start.key_end - 1 - begin, last.key_end - begin)
    ends = torch.arange(begin + 1, begin + TILE + 1)
    starts = torch.full((TILE,), start.key_start)
    if last.key_start > start.key_start:
        starts = (ends - (last.key_end - last.key_start)).clamp(min=0)
    begin_keys = int(starts[0])
    at = torch.arange(begin_keys, begin + TILE)
    unseen = (at >= ends[:, None]) | (at < starts[:, None])
    mask = torch.zeros(unseen.shape, dtype=query.dtype).masked_fill_(unseen, -torch.inf)
    whole = query.new_zeros(TILE, *query.shape[1:])
    whole[here] = query
    seen = slice(max(begin_keys, first), last.key_end)
    known = [_known(contents[seen.start - first : seen.stop - first], seen.start - begin_keys, len(at))
             for contents in (keys, values)]  # fmt: skip
    return fused(whole, known[0], known[1], scale, mask)[here]


def _goes_on(run: RowRun, after: RowRun) -> bool:
    return (
        run.row_end - run.row_start == 1
        and after.row_end - after.row_start == 1
        and after.row_start == run.row_end
        and after.key_end == run.key_end + 1
        and after.key_start - run.key_start in (0, 1)
        and run.key_end % TILE != 0
    )


def _known(contents: Tensor, before: int, length: int) -> Tensor:
    """Contents of some slots with zeros before and behind them, `length` slots in all, at an aligned address."""
    if len(contents) == length and aligned(contents):
        return contents
    whole = contents.new_zeros(length, *contents.shape[1:])
    whole[before : before + len(contents)] = contents
    return whole
