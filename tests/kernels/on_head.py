"""The head fused with selection beside the definition, in Triton's interpreter or on a GPU."""

from __future__ import annotations

import attrs
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from torch import Tensor
from torch.nn import functional

from diffulex_core.kernels.layers import head
from diffulex_core.sampling.facts import Facts, Wanted, facts_of

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GIVEN = settings(max_examples=8, deadline=None, derandomize=True, database=None, suppress_health_check=[*HealthCheck])
EVERYTHING = Wanted(columns=300, excluded=(7, 299), second=True, entropy=True, top=5)


def head_of(rows: int, width: int, columns: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, width, generator=generator)
    weight = torch.randn(columns, width, generator=generator) * 2 * width**-0.5
    bias = torch.randn(columns, generator=generator)
    return hidden.to(dtype).to(DEVICE), weight.to(dtype).to(DEVICE), bias.to(dtype).to(DEVICE)


def logits_of(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """In float64, rounded as the dtype is."""
    exact = functional.linear(hidden.double(), weight.double(), None if bias is None else bias.double())
    return exact.to(hidden.dtype)


def agree(found: Facts, logits: Tensor, wanted: Wanted, atol: float) -> None:
    """Numbers are close; the column's logit is the largest as far as numbers can tell."""
    expected = facts_of(logits, wanted)
    named = [("best", found.best, expected.best), ("log_sum", found.log_sum, expected.log_sum)]
    if expected.second is not None and found.second is not None:
        named.append(("second", found.second, expected.second))
    if expected.entropy is not None and found.entropy is not None:
        named.append(("entropy", found.entropy, expected.entropy))
    if expected.top is not None and found.top is not None:
        named.append(("top", found.top, expected.top))
    if expected.watched is not None and found.watched is not None:
        named.append(("watched", found.watched, expected.watched))
    for name, ours, theirs in named:
        torch.testing.assert_close(ours, theirs, atol=atol, rtol=atol, msg=lambda text, name=name: f"{name}: {text}")
    assert [each is None for each in attrs.astuple(found, recurse=False)] == [
        each is None for each in attrs.astuple(expected, recurse=False)
    ]
    scores = logits.float()
    if wanted.lowered is not None and wanted.penalty is not None:
        for row in np.flatnonzero(wanted.lowered >= 0):
            scores[row, wanted.lowered[row]] -= float(wanted.penalty[row])
    at_column = scores[torch.arange(len(logits)), found.column]
    torch.testing.assert_close(at_column, expected.best, atol=atol, rtol=atol)
    if expected.top is not None and found.top_columns is not None:
        at_columns = scores.gather(1, found.top_columns)
        held = expected.top.isfinite()
        torch.testing.assert_close(at_columns[held], expected.top[held], atol=atol, rtol=atol)
        assert not set(found.top_columns[held].tolist()) & set(wanted.excluded)
    assert not set(found.column.tolist()) & set(wanted.excluded)
    assert int(found.column.max()) < wanted.columns


@GIVEN
@given(data=st.data())
def test_facts_of_any_head_are_those_of_its_logits(data: st.DataObject) -> None:
    rows, width = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 100))
    columns, padding = data.draw(st.integers(4, 700)), data.draw(st.integers(0, 9))
    excluded = data.draw(st.lists(st.integers(0, columns - 1), max_size=3, unique=True))
    wanted = Wanted(
        columns=columns,
        excluded=tuple(sorted(excluded)),
        second=data.draw(st.booleans()),
        entropy=data.draw(st.booleans()),
        top=data.draw(st.sampled_from([0, 1, 3, 9])),
    )
    if data.draw(st.booleans()):
        said = np.random.default_rng(rows)
        wanted = attrs.evolve(
            wanted,
            lowered=said.integers(-1, columns, rows),
            penalty=said.random(rows).astype(np.float32) * 3,
            watched=said.integers(-1, columns + padding, (rows, 2)),
        )
    hidden, weight, bias = head_of(rows, width, columns + padding, torch.float32)
    added = bias if data.draw(st.booleans()) else None
    agree(head.select(hidden, weight, added, wanted), logits_of(hidden, weight, added), wanted, atol=2e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_logits_are_rounded_to_the_dtype_as_torch_gives_them(dtype: torch.dtype) -> None:
    """Whole numbers in a few bits: sums are exact in any order, so that every number must be the same."""
    hidden, weight, _ = head_of(33, 48, 300, dtype)
    hidden, weight = (hidden * 2).round(), (weight * 8).round()
    logits = logits_of(hidden, weight, None)
    found, expected = head.select(hidden, weight, None, EVERYTHING), facts_of(logits, EVERYTHING)
    assert torch.equal(found.best, expected.best)
    assert torch.equal(found.column, expected.column)
    torch.testing.assert_close(found.log_sum, expected.log_sum, atol=1e-5, rtol=1e-6)
    assert found.top is not None
    assert found.top_columns is not None
    assert torch.equal(found.top, expected.top)
    assert torch.equal(found.top_columns, expected.top_columns)


def test_watched_columns_are_told_as_they_are_and_lowered_ones_count_as_lowered() -> None:
    hidden, weight, _ = head_of(2, 16, 300, torch.float32)
    hidden, weight = (hidden * 2).round(), (weight * 4).round()
    weight[200] = 4 * hidden[0]
    logits = hidden @ weight.T
    wanted = attrs.evolve(
        EVERYTHING,
        lowered=np.array([200, -1]),
        penalty=np.array([1e6, 5], dtype=np.float32),
        watched=np.array([[200, 7, -1], [299, 310, 3]]),
    )
    found = head.select(hidden, weight, None, wanted)
    assert found.watched is not None
    nothing = float("-inf")
    assert found.watched.tolist() == [
        [float(logits[0, 200]), float(logits[0, 7]), nothing],
        [float(logits[1, 299]), nothing, float(logits[1, 3])],
    ]
    assert int(found.column[0]) != 200
    assert int(head.select(hidden, weight, None, EVERYTHING).column[0]) == 200


def test_more_than_there_are_columns_is_filled_up_with_nothing() -> None:
    hidden, weight, _ = head_of(3, 16, 300, torch.float32)
    found = head.select(hidden, weight, None, Wanted(columns=4, excluded=(1,), top=6))
    assert found.top is not None
    assert found.top_columns is not None
    assert found.top.isfinite().sum(1).tolist() == [3, 3, 3]
    assert found.top_columns[:, 3:].tolist() == [[0, 0, 0]] * 3
    assert sorted(found.top_columns[0, :3].tolist()) == [0, 2, 3]


def test_ties_go_to_the_highest_column_within_a_tile_and_across_tiles() -> None:
    hidden, weight, _ = head_of(2, 16, 300, torch.float32)
    hidden, weight = (hidden * 2).round(), (weight * 4).round()
    for column in (3, 5, 130, 131, 257):
        weight[column] = 4 * hidden[0]
    for column in (5, 9):
        weight[column] = 4 * hidden[1]
    found = head.select(hidden, weight, None, EVERYTHING)
    assert found.column.tolist() == [257, 9]
    assert found.top_columns is not None
    assert found.top_columns[0, :4].tolist() == [257, 131, 130, 3]
    assert found.top_columns[1, :2].tolist() == [9, 5]
    assert found.second is not None
    assert torch.equal(found.second, found.best)


def test_a_row_with_nan_or_infinity_is_not_finite_and_spoils_no_other() -> None:
    hidden, weight, _ = head_of(4, 16, 300, torch.float32)
    clean = head.select(hidden, weight, None, EVERYTHING)
    hidden[1, 3], hidden[2, 0] = torch.nan, torch.inf
    found = head.select(hidden, weight, None, EVERYTHING)
    assert found.log_sum.isfinite().tolist() == [True, False, False, True]
    assert torch.equal(found.log_sum[[0, 3]], clean.log_sum[[0, 3]])
    assert torch.equal(found.column[[0, 3]], clean.column[[0, 3]])


@pytest.mark.parametrize("wanted", [Wanted(columns=0), Wanted(columns=2, excluded=(0, 1), second=True, entropy=True)])
def test_a_share_without_a_possible_column_weighs_nothing(wanted: Wanted) -> None:
    hidden, weight, _ = head_of(3, 16, 300, torch.float32)
    found = head.select(hidden, weight, None, wanted)
    assert found.best.tolist() == found.log_sum.tolist() == [float("-inf")] * 3
    assert found.entropy is None or found.entropy.tolist() == [0.0] * 3


def test_no_rows_have_no_facts() -> None:
    hidden, weight, _ = head_of(0, 16, 300, torch.float32)
    assert head.select(hidden, weight, None, EVERYTHING).column.shape == (0,)


def test_large_logits_lose_nothing() -> None:
    hidden, weight, _ = head_of(3, 16, 300, torch.float32)
    weight[4] = weight[8] = 2000 * hidden[0]
    found = head.select(hidden, weight, None, EVERYTHING)
    assert float(found.log_sum[0] - found.best[0].double()) == pytest.approx(0.6931471805599453, abs=1e-6)
