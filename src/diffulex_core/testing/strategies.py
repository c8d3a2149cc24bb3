"""Hypothesis strategies for tests of one's own: prompts, block configurations, logits and batches for attention."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import attrs
import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from torch import Tensor

from diffulex_core.plugin import AttentionBatch, AttentionCase, FloatArray, IntArray
from diffulex_core.testing.attention_problems import Problem, grid, problems
from diffulex_core.testing.oracles.attention import dense

__all__ = ["BlockConfig", "PagedBatch", "block_configs", "logit_rows", "paged_batches", "prompts"]


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
        query: [rows, heads, head_dim].
        key_pages, value_pages: [pages, page_size, kv_heads, head_dim]. Slots that belong to nobody hold NaN.
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
        """[rows, heads, head_dim] attention by its definition, row by row and key by key, in float64."""
        return dense(self.query, self.key_pages, self.value_pages, self.batch, self.scale)


def paged_batches(*, cases: Collection[AttentionCase] = ()) -> SearchStrategy[PagedBatch]:
    """Ragged batches: grouped queries, scattered pages, cached and fed rows, windows, empty intervals and padding.

    Args:
        cases: shapes and types to choose from; empty = many of float32 on the CPU.
    """
    usual = [case for case in grid("cpu") if case.dtype == torch.float32]
    return problems([*cases] or usual).map(_batch_of)


def _batch_of(problem: Problem) -> PagedBatch:
    problem = attrs.evolve(problem, fill=math.nan)
    return PagedBatch(
        query=problem.query,
        key_pages=problem.pages(1),
        value_pages=problem.pages(2),
        batch=problem.batch,
        scale=problem.scale,
        case=problem.case,
    )
