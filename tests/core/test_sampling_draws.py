"""Random draws: pure functions of (seed, draw, position) whose frequencies are the distribution's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from diffulex_core.sampling.choose import draw
from diffulex_core.sampling.rng import uniform
from diffulex_core.sampling_params import SamplingParams
from tests.core.sampler_oracle import Asked, Group, decide, distribution

DRAWS = 6000
ROW = [2.0, 1.5, 0.0, -1.0, 1.0, -3.0]
FIVE_DEGREES_ONE_IN_A_MILLION = 35.9
"""Chi-square with five degrees of freedom exceeds this with probability 1e-6."""

words = st.integers(0, 2**63 - 1)


def triple(seed: int, count: int, position: int) -> float:
    arrays = (np.array([word], dtype=np.int64) for word in (seed, count, position))
    return float(uniform(*arrays)[0])


@pytest.mark.parametrize("varies", ["seed", "draw", "position"])
@pytest.mark.parametrize(
    "limits",
    [{}, {"temperature": 2.0}, {"top_k": 3}, {"top_p": 0.7}, {"min_p": 0.3}],
    ids=["plain", "hot", "top_k", "top_p", "min_p"],
)
def test_frequencies_are_the_distribution(varies: str, limits: dict[str, float]) -> None:
    def params(seed: int) -> SamplingParams:
        return SamplingParams(**{"temperature": 1.0, **limits}, seed=seed)  # type: ignore[arg-type]

    if varies == "position":
        asked = [Asked(groups=[Group(logits=[ROW] * DRAWS)], params=params(11))]
    else:
        asked = [
            Asked(
                groups=[Group(logits=[ROW], positions=[5])],
                params=params(index if varies == "seed" else 11),
                draw=index if varies == "draw" else 3,
            )
            for index in range(DRAWS)
        ]
    tokens = np.concatenate([decision.tokens for decision in decide(*asked)])
    counts = np.bincount(tokens, minlength=len(ROW))
    expected = distribution(ROW, params(0), vocab_size=len(ROW)) * DRAWS
    possible = expected > 0
    assert counts[~possible].sum() == 0
    statistic = ((counts[possible] - expected[possible]) ** 2 / expected[possible]).sum()
    assert statistic < FIVE_DEGREES_ONE_IN_A_MILLION


def test_draws_of_neighbouring_positions_are_independent() -> None:
    numbers = uniform(*(np.zeros(DRAWS, dtype=np.int64),) * 2, np.arange(DRAWS))
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.06
    pairs = (numbers[:-1] < 0.5) * 2 + (numbers[1:] < 0.5)
    assert np.abs(np.bincount(pairs, minlength=4) / len(pairs) - 0.25).max() < 0.03


@given(words, words, words)
@settings(deadline=None)
def test_a_number_lies_in_the_unit_interval_and_depends_on_every_word(seed: int, count: int, position: int) -> None:
    number = triple(seed, count, position)
    assert 0 <= number < 1
    assert number == triple(seed, count, position)
    for flipped in ((seed ^ 1, count, position), (seed, count ^ 1, position), (seed, count, position ^ 1)):
        assert number != triple(*flipped)


def test_the_words_have_places() -> None:
    assert len({triple(*words) for words in ((1, 2, 3), (2, 1, 3), (3, 2, 1), (1, 3, 2), (2, 3, 1), (3, 1, 2))}) == 6


def test_numbers_are_the_same_on_every_machine() -> None:
    arrays = (np.array(words, dtype=np.int64) for words in ([0, 7, 2**62], [0, 1, 5], [0, 2, 900]))
    assert uniform(*arrays).tolist() == [0.13870941014555427, 0.3412156654178844, 0.14896078336919394]


@given(st.lists(st.integers(-40, 8), min_size=1, max_size=9), st.floats(0, 1, exclude_max=True))
@settings(deadline=None)
def test_a_draw_inverts_the_cumulative_distribution(logits: list[int], number: float) -> None:
    scores = torch.tensor([logits], dtype=torch.float32)
    token = int(draw(scores, torch.tensor([number], dtype=torch.float64))[0])
    exact = np.exp(np.array(logits, dtype=np.float64) - max(logits))
    cumulative = np.cumsum(exact / exact.sum())
    assert (cumulative[token - 1] if token else 0) <= number + 1e-12
    assert number <= cumulative[token] + 1e-12


@pytest.mark.parametrize("number", [0.0, 0.5, 1 - 2**-53])
def test_an_impossible_token_is_never_drawn(number: float) -> None:
    scores = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]])
    assert int(draw(scores, torch.tensor([number], dtype=torch.float64))[0]) in (1, 3)


def test_equal_seeds_give_equal_answers_and_others_do_not() -> None:
    def tokens(seed: int, count: int = 0) -> list[int]:
        params = SamplingParams(temperature=1.0, seed=seed)
        return decide(Asked(groups=[Group(logits=[ROW] * 60)], params=params, draw=count))[0].tokens.tolist()  # type: ignore[no-any-return]

    assert tokens(5) == tokens(5)
    assert tokens(5) != tokens(6)
    assert tokens(5) != tokens(5, count=1)
    assert tokens(-5) != tokens(5)
