"""The rules of a canvas, against plain restatements."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, strategies as st

from diffulex_core.pattern import IntArray
from diffulex_core.sampling_params import SamplingParams
from diffulex_gemma.denoising import confident, stable, temperature, within_bound
from diffulex_gemma.draws import COUNTER, seed_of

# Multiples of 1/64, so that sums in any order are exact.
ENTROPIES = st.lists(st.integers(0, 400).map(lambda part: part / 64), min_size=1, max_size=12)


@given(entropies=ENTROPIES, bound=st.integers(0, 600).map(lambda part: part / 64))
def test_a_position_is_kept_when_the_more_certain_ones_add_up_to_at_most_the_bound(
    entropies: list[float], bound: float
) -> None:
    kept = within_bound(np.array(entropies), bound)
    for at, own in enumerate(entropies):
        before = [other for j, other in enumerate(entropies) if (other, j) < (own, at)]
        assert kept[at] == (sum(before) <= bound)


@given(entropies=ENTROPIES, bounds=st.tuples(st.floats(0, 10), st.floats(0, 10)))
def test_one_position_is_always_kept_and_a_larger_bound_keeps_no_fewer(
    entropies: list[float], bounds: tuple[float, float]
) -> None:
    low, high = (within_bound(np.array(entropies), bound) for bound in sorted(bounds))
    assert low[int(np.argmin(entropies))]
    assert (high | ~low).all()


@given(canvases=st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.25]), min_size=4, max_size=4), min_size=1, max_size=4))
def test_canvases_side_by_side_keep_what_each_keeps_alone(canvases: list[list[float]]) -> None:
    together = within_bound(np.array(canvases), 1.5)
    assert together.tolist() == [within_bound(np.array(canvas), 1.5).tolist() for canvas in canvases]


@given(
    history=st.lists(st.lists(st.integers(0, 1), min_size=2, max_size=2), min_size=1, max_size=5),
    threshold=st.integers(0, 4),
)
def test_a_canvas_is_stable_when_it_equals_those_of_so_many_steps_before(
    history: list[list[int]], threshold: int
) -> None:
    *earlier, last = history
    wanted = [last] * threshold
    found = stable(np.array(last), [np.array(one) for one in earlier], threshold)
    assert found == (earlier[len(earlier) - threshold :] == wanted and len(earlier) >= threshold)


@given(entropies=ENTROPIES, threshold=st.floats(0, 8))
def test_a_canvas_is_confident_when_its_mean_entropy_is_below_the_threshold(
    entropies: list[float], threshold: float
) -> None:
    assert confident(np.array(entropies), threshold) == (math.fsum(entropies) / len(entropies) < threshold)


def test_no_canvas_is_confident_under_a_threshold_of_zero() -> None:
    assert not confident(np.zeros(3), 0.0)


def test_the_temperature_falls_evenly_from_t_max_and_stays_above_t_min() -> None:
    assert [temperature(step, 4, 0.4, 0.8) for step in range(4)] == pytest.approx([0.8, 0.7, 0.6, 0.5])
    assert temperature(0, 1, 0.4, 0.8) == pytest.approx(0.8)


def noise_of(seed: int, draw: int, positions: IntArray, vocab_size: int) -> IntArray:
    """Of one request's step."""
    rows = np.ones_like(positions)
    return COUNTER.noise(rows * seed, rows * draw, positions, vocab_size)


@given(seed=st.integers(0, 2**63 - 1), draw=st.integers(0, 1000), start=st.integers(0, 10**6))
def test_noise_is_a_function_of_seed_step_and_position(seed: int, draw: int, start: int) -> None:
    positions = np.arange(start, start + 20)
    noise = noise_of(seed, draw, positions, 50)
    assert np.array_equal(noise[5:], noise_of(seed, draw, positions[5:], 50))
    assert noise.min() >= 0
    assert noise.max() < 50
    assert not np.array_equal(noise, noise_of(seed, draw + 1, positions, 50))
    drawn = COUNTER.sampling(np.full(20, seed), np.full(20, draw), positions)
    assert not np.array_equal(noise, (drawn * 50).astype(np.int64)), "what is drawn does not follow from the noise"


def test_no_step_draws_by_the_numbers_that_another_made_its_noise_of() -> None:
    positions, vocab_size = np.arange(8), 10**9
    steps = range(40)
    drawn = [COUNTER.sampling(np.full(8, 5), np.full(8, step), positions) * vocab_size for step in steps]
    noise = [noise_of(5, step, positions, vocab_size) for step in steps]
    assert len(np.unique(np.concatenate([*np.floor(drawn), *noise]))) == 2 * len(steps) * len(positions)


def test_noise_is_spread_evenly_over_the_vocabulary() -> None:
    counts = np.bincount(noise_of(7, 3, np.arange(20_000), 10), minlength=10)
    assert (np.abs(counts - 2000) < 5 * math.sqrt(2000)).all()


@pytest.mark.parametrize("seed", [None, 0, -1, 2**70 + 5])
def test_any_seed_is_made_one_of_63_bits(seed: int | None) -> None:
    assert 0 <= seed_of(SamplingParams(seed=seed)) < 2**63
