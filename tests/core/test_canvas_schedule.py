"""Fixed-length generation as numbers: how many positions a step decides, which ones, and who sees whom."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, strategies as st

from diffulex_core.canvas.choice import above, draws, most_confident, weighted
from diffulex_core.canvas.pattern import full_canvas
from diffulex_core.canvas.schedule import block_steps, decided_share, grid_quota, quota, time_grid
from diffulex_core.pattern import Extent, Phase

MANY = 6000


def test_a_step_decides_as_many_as_the_balanced_schedule_of_the_published_sampler() -> None:
    for masks in range(1, 80):
        for steps in range(1, 80):
            balanced = [masks // steps + (step < masks % steps) for step in range(steps)]
            left, counts = masks, []
            for step in range(steps):
                counts.append(quota(left, steps - step))
                left -= counts[-1]
            assert counts == balanced


@given(st.integers(0, 50), st.integers(-3, 50))
def test_the_last_step_takes_all_that_are_left(masks: int, steps: int) -> None:
    assert quota(masks, min(steps, 1)) == masks
    assert quota(masks, steps) <= masks


@given(length=st.integers(1, 60), block_length=st.integers(1, 70), steps=st.integers(1, 80))
def test_steps_are_spread_over_blocks_larger_first(length: int, block_length: int, steps: int) -> None:
    shares = block_steps(length, block_length, steps)
    assert len(shares) == -(-length // block_length)
    assert sorted(shares, reverse=True) == list(shares)
    assert min(shares) >= 1
    assert max(shares) - min(shares) <= 1
    assert sum(shares) == max(steps, len(shares))


@given(steps=st.integers(1, 600), eps=st.floats(1e-6, 0.9))
def test_the_time_grid_runs_evenly_from_one_to_eps(steps: int, eps: float) -> None:
    grid = time_grid(steps, eps)
    assert grid.dtype == np.float32
    assert (grid[0], grid[-1], len(grid)) == (1, np.float32(eps), steps + 1)
    assert np.allclose(np.diff(grid), (eps - 1) / steps, atol=2e-7)


@pytest.mark.parametrize(
    ("masks", "steps", "first", "last"),
    [(512, 512, 0, 2), (128, 128, 0, 2), (32, 32, 0, 2), (64, 32, 1, 3), (100, 30, 3, 5)],
)
def test_rounding_down_starts_slowly_and_ends_with_a_larger_step(masks: int, steps: int, first: int, last: int) -> None:
    grid, left, counts = time_grid(steps, 1e-3), masks, []
    for step in range(steps):
        counts.append(grid_quota(left, grid, step))
        left -= counts[-1]
    assert (counts[0], counts[-1], sum(counts)) == (first, last, masks)
    assert set(counts[1:-1]) <= {masks // steps, masks // steps + 1}


def test_steps_past_the_grid_decide_everything() -> None:
    grid = time_grid(4, 1e-3)
    assert [grid_quota(9, grid, step) for step in (3, 4, 40)] == [9, 9, 9]
    assert decided_share(grid, 99) == 1


def test_the_most_confident_come_first_and_of_equals_the_first() -> None:
    assert most_confident(np.array([0.2, 0.9, 0.9, 0.1, 0.9]), 2).tolist() == [False, True, True, False, False]
    assert most_confident(np.array([-np.inf, -np.inf, 0.1]), 2).tolist() == [True, False, True]


def test_a_threshold_accepts_what_reaches_it_and_at_least_the_best() -> None:
    assert above(np.array([0.9, 0.89, 0.95]), 0.9).tolist() == [True, False, True]
    assert above(np.array([0.2, 0.3, 0.3]), 0.9).tolist() == [False, True, False]


def test_positions_are_drawn_without_replacement_by_their_weights() -> None:
    confidence, temperature = np.array([0.3, 0.9, 0.5, 0.1]), 0.5
    weights = np.exp(confidence / temperature)
    expected = {}
    for first, second in permutations(range(4), 2):
        chance = weights[first] / weights.sum() * weights[second] / (weights.sum() - weights[first])
        pair = frozenset((first, second))
        expected[pair] = expected.get(pair, 0.0) + chance * MANY
    counts = dict.fromkeys(expected, 0)
    for step in range(MANY):
        chosen = weighted(confidence, 2, temperature, draws(5, step, np.arange(4), 1))
        counts[frozenset(np.flatnonzero(chosen).tolist())] += 1
    statistic = sum((counts[pair] - expected[pair]) ** 2 / expected[pair] for pair in expected)
    assert statistic < 35.9  # five degrees of freedom, one in a million


def test_streams_of_draws_are_independent_of_each_other_and_of_the_batch() -> None:
    at = np.arange(MANY)
    first, second = draws(7, 3, at, 1), draws(7, 3, at, 2)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.06
    assert abs(first.mean() - 0.5) < 0.02
    assert draws(7, 3, at[10:12], 1).tolist() == first[10:12].tolist()


def test_every_row_of_a_canvas_sees_the_whole_span_and_none_of_it_may_be_shared() -> None:
    pattern = full_canvas(4)
    extent = Extent(prompt_len=3, phase=Phase.DECODE, final_end=0, end=11)
    assert pattern.key_end(np.arange(11), extent).tolist() == [11] * 11
    assert pattern.dependency_end(0, 3) > 1 << 40
    assert pattern.block_size == 4
    assert not pattern.two_phase
