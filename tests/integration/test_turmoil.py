"""Random requests under stress, strategy by strategy; `nox -s soak` runs thousands of them."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import given, settings, strategies as st

from tests.integration.matrix import CASES, VARIANTS, Case, Checkpoints
from tests.integration.turmoil import Tally, turmoil

ONE_OF_EACH = [next(case for case in CASES if case.recipe == recipe) for recipe in sorted(VARIANTS)]


@pytest.fixture(scope="module")
def checkpoints() -> Iterator[Checkpoints]:
    made = Checkpoints()
    yield made
    made.close()


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=str)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**32), requests=st.integers(1, 8))
def test_random_requests_neither_hang_nor_leak_and_answer_as_alone(
    case: Case, seed: int, requests: int, checkpoints: Checkpoints
) -> None:
    turmoil(case, checkpoints, Random(seed), requests=requests, compared=1.0)


def test_turmoil_is_what_its_name_says(checkpoints: Checkpoints) -> None:
    total = Tally()
    for seed in range(3):
        total.add(turmoil(CASES[-1], checkpoints, Random(seed), requests=20))
    assert min(total.aborted, total.preemptions, total.cached, total.compared) > 0
    assert {"length_tokens", "nfe_limit", "aborted"} < total.reasons
