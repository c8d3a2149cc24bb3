"""The public hypothesis strategies draw what they say, and everything that they are there for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import Phase, find, given, settings, strategies as st

from diffulex_core.attention.reference import TorchReference, probe
from diffulex_core.plugin import FloatArray, IntArray
from diffulex_core.testing.strategies import (
    BlockConfig,
    PagedBatch,
    block_configs,
    logit_rows,
    paged_batches,
    prompts,
)

QUICK = settings(max_examples=40, deadline=None)
SEARCH = settings(max_examples=300, deadline=None, derandomize=True, database=None, phases=[Phase.generate])


@QUICK
@given(prompts(vocab_size=9, forbidden={0, 8}, min_size=2, max_size=20))
def test_prompts_hold_allowed_tokens_and_are_as_long_as_asked(prompt: IntArray) -> None:
    assert prompt.dtype == np.int64
    assert 2 <= len(prompt) <= 20
    assert set(prompt.tolist()) <= set(range(1, 8))


def test_prompts_share_how_they_begin() -> None:
    drawn = st.tuples(prompts(vocab_size=50), prompts(vocab_size=50))
    first, second = find(
        drawn, lambda pair: min(map(len, pair)) > 10 and list(pair[0][:10]) == list(pair[1][:10]), settings=SEARCH
    )
    assert first[:10].tolist() == second[:10].tolist()


def test_prompts_of_no_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="leave at least one"):
        find(prompts(vocab_size=2, forbidden={0, 1}), lambda prompt: True, settings=SEARCH)


@pytest.mark.parametrize(
    "wanted",
    [
        lambda drawn: drawn.page_size > drawn.block_size > 1,
        lambda drawn: drawn.block_size > drawn.page_size,
        lambda drawn: drawn.block_size == 1,
        lambda drawn: drawn.buffer_size == 4,
    ],
)
def test_block_configs_come_in_all_proportions(wanted: object) -> None:
    assert isinstance(find(block_configs(), wanted, settings=SEARCH), BlockConfig)


@QUICK
@given(logit_rows(vocab_size=2, bans=True))
def test_every_row_of_logits_leaves_a_token(logits: FloatArray) -> None:
    assert logits.dtype == np.float32
    assert logits.shape[1] == 2
    assert np.isfinite(logits).any(axis=1).all()
    assert not np.isnan(logits).any()


@pytest.mark.parametrize(
    "wanted",
    [
        lambda rows: bool((np.sort(rows)[:, -1] == np.sort(rows)[:, -2]).any()) and bool(np.ptp(rows) > 0),
        lambda rows: bool((np.ptp(rows, axis=1) == 0).all()),
        lambda rows: bool((np.abs(rows) > 500).any()),
        lambda rows: bool((rows.max(axis=1) - np.median(rows, axis=1) > 10).any()),
        lambda rows: rows.shape[1] > 20,
    ],
    ids=["ties", "flat", "large", "peaks", "wide"],
)
def test_logits_come_in_all_kinds(wanted: object) -> None:
    find(logit_rows(), wanted, settings=SEARCH)


@QUICK
@given(paged_batches())
def test_a_backend_that_is_right_gives_what_a_batch_expects(drawn: PagedBatch) -> None:
    assert probe(drawn.case) == []
    found = TorchReference().attend(drawn.query, drawn.key_pages, drawn.value_pages, drawn.batch, drawn.scale)
    torch.testing.assert_close(found.double(), drawn.expected(), rtol=1e-4, atol=1e-5)


@QUICK
@given(paged_batches())
def test_a_batch_says_the_same_in_tensors_and_in_runs(drawn: PagedBatch) -> None:
    batch, said = drawn.batch, dict[int, tuple[int, int, int]]()
    for run in batch.runs:
        for row in range(run.row_start, run.row_end):
            assert row not in said
            said[row] = (run.sequence, run.key_start, run.key_end)
    for row in range(len(batch.key_start)):
        told = (int(batch.row_sequence[row]), int(batch.key_start[row]), int(batch.key_end[row]))
        assert told == said.get(row, (0, 0, 0))
    owned = batch.page_tables[batch.page_tables >= 0]
    assert len(owned) == len(owned.unique()) < len(drawn.key_pages)


@pytest.mark.parametrize(
    "wanted",
    [
        lambda drawn: len(drawn.batch.page_tables) > 2,
        lambda drawn: drawn.case.num_heads > drawn.case.num_kv_heads > 1,
        lambda drawn: any(run.key_start > 0 for run in drawn.batch.runs),
        lambda drawn: any(run.key_end == 0 for run in drawn.batch.runs),
        lambda drawn: any(
            math.ceil(run.key_end / drawn.batch.page_size) > run.key_start // drawn.batch.page_size + 1
            for run in drawn.batch.runs
        ),
        lambda drawn: bool(drawn.key_pages.isnan().any()),
    ],
    ids=["sequences", "groups", "window", "empty", "pages", "unseen"],
)
def test_batches_come_in_all_kinds(wanted: object) -> None:
    find(paged_batches(), wanted, settings=SEARCH)
