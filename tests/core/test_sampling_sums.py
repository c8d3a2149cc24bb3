"""Probabilities of large logits: they depend on the differences between logits, not on their size."""

from __future__ import annotations

import math

import pytest
import torch

from diffulex_core.sampling.sums import log_sum
from diffulex_core.sampling_params import SamplingParams
from tests.core.sampler_oracle import Asked, Group, decide

SIZES = [0.3, 31.7, 1_003.1, 50_021.9]


@pytest.mark.parametrize("size", [*SIZES, -50_021.9])
@pytest.mark.parametrize("equals", [2, 3, 8])
def test_equal_logits_have_equal_shares_whatever_their_size(size: float, equals: int) -> None:
    row = [size] * equals + [-math.inf] * (12 - equals)
    [decision] = decide(Asked(groups=[Group(logits=[row])], params=SamplingParams(temperature=0.0, logprobs=0)))
    assert decision.confidence[0] == pytest.approx(1 / equals, rel=1e-6)
    assert decision.logprobs is not None
    assert decision.logprobs.chosen[0] == pytest.approx(-math.log(equals), abs=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_one_of_two_equals_does_not_pass_a_threshold_of_one_half(size: float) -> None:
    rows = [[size + each / 7, size + each / 7] for each in range(200)]
    [decision] = decide(Asked(groups=[Group(logits=rows, threshold=0.5)]))
    assert not decision.accepted.any()


def test_the_sum_of_nothing_is_nothing_and_what_is_not_finite_stays_so() -> None:
    rows = torch.tensor([[-math.inf, -math.inf], [math.nan, 0.0], [math.inf, 0.0], [-3e38, -3e38], [-math.inf, 2.0]])
    impossible, broken, endless, tiny, alone = log_sum(rows).tolist()
    assert impossible == -math.inf
    assert math.isnan(broken)
    assert not math.isfinite(endless)
    assert tiny == pytest.approx(-3e38)
    assert alone == 2.0
