"""Hypothesis strategies for tests of one's own: prompts, block configurations, logits and batches for attention."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import attrs
import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from torch import Tensor

from diffulex_core.plugin import AttentionBatch, AttentionCase, FloatArray, IntArray, RowRun

ROW_MULTIPLE = 8
"""Batches come with their rows padded to a multiple of this, as runners lay them out."""


@attrs.frozen(kw_only=True)
class BlockConfig:
    """Sizes that an engine may be run with.

    Attributes:
        block_size: tokens per block.
        page_size: slots per page.
        buffer_size: most blocks that run at once.
    """

    block_size: int
    page_size: int
    buffer_size: int


def block_configs(
    *, block_sizes: Sequence[int] = (1, 4, 8, 16, 32), page_sizes: Sequence[int] = (4, 8, 16, 32), most_blocks: int = 4
) -> SearchStrategy[BlockConfig]:
    """Sizes in every combination, smallest first: pages that hold many blocks, and blocks that fill many pages."""
    return st.builds(
        BlockConfig,
        block_size=st.sampled_from(block_sizes),
        page_size=st.sampled_from(page_sizes),
        buffer_size=st.integers(1, most_blocks),
    )


@st.composite
def prompts(
    draw: DrawFn, *, vocab_size: int, forbidden: Collection[int] = (), min_size: int = 1, max_size: int = 48
) -> IntArray:
    """Prompts [n] int64, many of which share how they begin, so that caches have something to share.

    Args:
        draw: given by hypothesis.
        vocab_size: token ids lie below it.
        forbidden: ids that no prompt holds, such as the mask token.
        min_size, max_size: bounds of the length.
    """
    words = [token for token in range(vocab_size) if token not in forbidden]
    if not words:
        raise ValueError("every token is forbidden; leave at least one for prompts")
    size = draw(st.integers(min_size, max_size))
    # One long text that all prompts repeat, and what they say of their own behind it.
    shared = draw(st.integers(0, size))
    begin = [words[(7 * index) % len(words)] for index in range(shared)]
    rest = draw(st.lists(st.sampled_from(words), min_size=size - shared, max_size=size - shared))
    return np.array([*begin, *rest], dtype=np.int64)


@st.composite
def logit_rows(draw: DrawFn, *, vocab_size: int | None = None, max_rows: int = 8, bans: bool = False) -> FloatArray:
    """Logits [rows, vocabulary] float32: flat rows, rows with equal maxima, peaks, and large numbers.

    Args:
        draw: given by hypothesis.
        vocab_size: columns; None = any from 2 to 40.
        max_rows: most rows.
        bans: some logits are minus infinity, never all of a row.
    """
    columns = draw(st.integers(2, 40)) if vocab_size is None else vocab_size
    rows = draw(st.integers(1, max_rows))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    match draw(st.sampled_from(["flat", "ties", "normal", "peaks", "large"])):
        case "flat":
            logits = np.full((rows, columns), draw(st.sampled_from([0.0, -3.0, 50.0])))
        case "ties":
            logits = random.integers(-2, 3, size=(rows, columns)).astype(np.float64)
        case "peaks":
            logits = random.normal(size=(rows, columns))
            logits[np.arange(rows), random.integers(0, columns, rows)] += 12
        case "large":
            logits = random.normal(size=(rows, columns)) * 1000
        case _:
            logits = random.normal(size=(rows, columns)) * 2
    if bans:
        banned = random.random((rows, columns)) < 0.3
        banned[np.arange(rows), random.integers(0, columns, rows)] = False
        logits[banned] = -np.inf
    return logits.astype(np.float32)


@attrs.frozen(kw_only=True, eq=False)
class PagedBatch:
    """One call of an attention backend.

    Attributes:
        query: [rows, heads, head_dim] float32.
        key_pages, value_pages: [pages, page_size, kv_heads, head_dim]. Slots that no row sees hold NaN.
        batch: who sees what.
        scale: factor on the scores.
        case: the same in numbers, for a backend's probe.
    """

    query: Tensor
    key_pages: Tensor
    value_pages: Tensor
    batch: AttentionBatch
    scale: float
    case: AttentionCase

    def expected(self) -> Tensor:
        """[rows, heads, head_dim] attention by its definition, row by row and head by head, in float64."""
        result = torch.zeros_like(self.query, dtype=torch.float64)
        rows, heads, _ = self.query.shape
        group = heads // self.key_pages.shape[2]
        for row in range(rows):
            begin, end = int(self.batch.key_start[row]), int(self.batch.key_end[row])
            table = self.batch.page_tables[int(self.batch.row_sequence[row])]
            pages = [int(table[slot // self.batch.page_size]) for slot in range(begin, end)]
            offsets = [slot % self.batch.page_size for slot in range(begin, end)]
            keys, values = self.key_pages[pages, offsets].double(), self.value_pages[pages, offsets].double()
            for head in range(heads if pages else 0):
                scores = keys[:, head // group] @ self.query[row, head].double() * self.scale
                result[row, head] = torch.softmax(scores, dim=0) @ values[:, head // group]
        return result


@st.composite
def paged_batches(
    draw: DrawFn,
    *,
    page_sizes: Sequence[int] = (1, 4, 8, 16, 32),
    head_dims: Sequence[int] = (8, 16, 32),
    most_sequences: int = 4,
    most_slots: int = 40,
) -> PagedBatch:
    """Ragged batches: grouped queries, scattered pages, cached and fed rows, windows, empty intervals and padding.

    Args:
        draw: given by hypothesis.
        page_sizes, head_dims: what to choose from.
        most_sequences, most_slots: bounds of the batch and of each sequence.
    """
    page_size, head_dim = draw(st.sampled_from(page_sizes)), draw(st.sampled_from(head_dims))
    kv_heads, group = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 4]))
    seed = draw(st.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)
    intervals, tables, taken = list[tuple[int, int, int]](), list[list[int]](), 0
    for sequence in range(draw(st.integers(1, most_sequences))):
        slots = draw(st.integers(1, most_slots))
        tables.append(list(range(taken, taken + -(-slots // page_size))))
        taken += len(tables[-1])
        for _ in range(draw(st.integers(1, 3))):
            end = draw(st.integers(0, slots))
            begin = draw(st.one_of(st.just(0), st.integers(0, end)))
            # An empty interval stands as [0, 0), as in padding rows.
            begin, end = (0, 0) if begin == end else (begin, end)
            intervals += [(sequence, begin, end)] * draw(st.integers(1, 9))
    places = random.permutation(taken + 2)
    page_tables = np.full((len(tables), max(map(len, tables))), -1, dtype=np.int64)
    for sequence, table in enumerate(tables):
        page_tables[sequence, : len(table)] = places[table]
    shape = (taken + 2, page_size, kv_heads, head_dim)
    keys, values = np.full(shape, np.nan, dtype=np.float32), np.full(shape, np.nan, dtype=np.float32)
    for sequence, begin, end in intervals:
        for slot in range(begin, end):
            at = (page_tables[sequence, slot // page_size], slot % page_size)
            keys[at], values[at] = random.normal(size=shape[2:]), random.normal(size=shape[2:])
    padding = -len(intervals) % ROW_MULTIPLE
    laid = [*intervals, *[(0, 0, 0)] * padding]
    query = random.normal(size=(len(laid), kv_heads * group, head_dim)).astype(np.float32)
    return PagedBatch(
        query=torch.from_numpy(query),
        key_pages=torch.from_numpy(keys),
        value_pages=torch.from_numpy(values),
        batch=AttentionBatch(
            key_start=torch.tensor([begin for _, begin, _ in laid]),
            key_end=torch.tensor([end for _, _, end in laid]),
            row_sequence=torch.tensor([sequence for sequence, _, _ in laid]),
            page_tables=torch.from_numpy(page_tables),
            page_size=page_size,
            runs=_runs(intervals),
        ),
        scale=draw(st.sampled_from([head_dim**-0.5, 1.0])),
        case=AttentionCase(
            device_type="cpu",
            dtype=torch.float32,
            head_dim=head_dim,
            num_heads=kv_heads * group,
            num_kv_heads=kv_heads,
            page_size=page_size,
            block_size=page_size,
        ),
    )


def _runs(intervals: Sequence[tuple[int, int, int]]) -> tuple[RowRun, ...]:
    """Consecutive rows that see the same, as one run each."""
    bounds = [row for row in range(len(intervals)) if row == 0 or intervals[row] != intervals[row - 1]]
    return tuple(
        RowRun(
            row_start=begin,
            row_end=end,
            sequence=intervals[begin][0],
            key_start=intervals[begin][1],
            key_end=intervals[begin][2],
        )
        for begin, end in zip(bounds, [*bounds[1:], len(intervals)], strict=True)
    )
