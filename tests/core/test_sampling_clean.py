"""Confidence apart from the choice: before temperature and limits, by a measure of the group's own, and in parts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import attrs
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from diffulex_core.distributed import Communicator
from diffulex_core.packing import parts_of_head
from diffulex_core.sampling import PackedSampler
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.testing.thread_group import ThreadGroup
from diffulex_core.types import Decision, SamplingBatch
from tests.core.sampler_oracle import Asked, Group, batch_of, distribution, logits_of

VOCAB = 9
HOT = SamplingParams(temperature=1.7, top_p=0.8, top_k=5, seed=3)
PLAIN = SamplingParams(temperature=0.0)
MANY = 100_000

rows = st.lists(
    st.lists(st.integers(-12, 12).map(lambda each: each / 4), min_size=VOCAB, max_size=VOCAB), min_size=1, max_size=5
)


def clean(batch: SamplingBatch, groups: Sequence[bool], measure: Sequence[str | None] = ()) -> SamplingBatch:
    return attrs.evolve(batch, clean_confidence=np.array(groups), measure=tuple(measure))


def sample(logits: torch.Tensor, batch: SamplingBatch, ranks: int = 1) -> list[Decision]:
    columns = logits.chunk(ranks, dim=1)

    def decide(tp: Communicator) -> list[Decision]:
        return list(PackedSampler(vocab_size=VOCAB, forbidden=frozenset({2}), tp=tp).sample(columns[tp.rank], batch))

    return (
        ThreadGroup(ranks).run(decide)[0]
        if ranks > 1
        else list(PackedSampler(vocab_size=VOCAB, forbidden=frozenset({2})).sample(logits, batch))
    )


def untouched(row: Sequence[float]) -> np.ndarray:
    return distribution(row, PLAIN, vocab_size=VOCAB, forbidden=frozenset({2}))


@given(rows=rows, ranks=st.sampled_from([1, 3]))
@settings(max_examples=40, deadline=None)
def test_clean_confidence_is_the_probability_before_temperature_and_limits(rows: list[list[float]], ranks: int) -> None:
    asked = [Asked(groups=[Group(logits=rows), Group(logits=rows)], params=HOT)]
    [decision] = sample(logits_of(asked), clean(batch_of(asked), [True, False]), ranks)
    [usual] = sample(logits_of(asked), batch_of(asked), ranks)
    assert decision.tokens.tolist() == usual.tokens.tolist()
    count = len(rows)
    assert decision.confidence[count:].tolist() == usual.confidence[count:].tolist()
    expected = [untouched(row)[token] for row, token in zip(rows, decision.tokens[:count], strict=True)]
    assert decision.confidence[:count] == pytest.approx(expected, rel=1e-5)


@given(rows=rows, ranks=st.sampled_from([1, 3]))
@settings(max_examples=40, deadline=None)
def test_a_group_may_have_a_measure_of_its_own(rows: list[list[float]], ranks: int) -> None:
    asked = [Asked(groups=[Group(logits=rows) for _ in range(3)], params=attrs.evolve(PLAIN, confidence="margin"))]
    [decision] = sample(logits_of(asked), clean(batch_of(asked), [False] * 3, ["entropy", "prob", None]), ranks)
    entropy, probability, margin = np.split(decision.confidence, 3)
    for row, *told in zip(rows, entropy, probability, margin, strict=True):
        p = untouched(row)
        first, second = np.sort(p)[::-1][:2]
        assert told == pytest.approx([(p * np.log(p + 1e-10)).sum(), first, first - second], rel=1e-4, abs=1e-5)


def test_measures_of_clean_groups_are_those_of_the_clean_distribution() -> None:
    row = [1.0, 0.5, 9.0, 0.0, -1.0, 2.0, 0.25, 1.5, -2.0]
    asked = [Asked(groups=[Group(logits=[row])], params=HOT)]
    [decision] = sample(logits_of(asked), clean(batch_of(asked), [True], ["margin"]))
    first, second = np.sort(untouched(row))[::-1][:2]
    assert decision.confidence == pytest.approx([first - second], rel=1e-5)


def test_drawn_tokens_have_the_frequencies_of_the_tempered_distribution() -> None:
    row = [0.0, 1.0, 9.0, -1.0, 2.0, 0.5, -0.5, 1.5, 0.25]
    params = SamplingParams(temperature=0.7, seed=21)
    asked = [Asked(groups=[Group(logits=[row] * MANY)], params=params)]
    [decision] = sample(logits_of(asked), clean(batch_of(asked), [True]))
    expected = distribution(row, params, vocab_size=VOCAB, forbidden=frozenset({2})) * MANY
    counts = np.bincount(decision.tokens, minlength=VOCAB)
    assert counts[2] == 0
    possible = expected > 0
    statistic = ((counts[possible] - expected[possible]) ** 2 / expected[possible]).sum()
    assert statistic < 40.5  # seven degrees of freedom, one in a million


@given(data=st.data(), rows=rows)
@settings(max_examples=30, deadline=None)
def test_a_step_looked_at_in_parts_is_decided_as_a_whole(data: st.DataObject, rows: list[list[float]]) -> None:
    asked = [
        Asked(groups=[Group(logits=rows, threshold=0.5, force_one=True), Group(logits=rows)], params=HOT),
        Asked(groups=[Group(logits=rows, threshold=0.3)], params=PLAIN, draw=2),
    ]
    logits, batch = logits_of(asked), clean(batch_of(asked), [True, False, False])
    cuts = data.draw(st.sets(st.integers(1, len(logits) - 1), max_size=4))
    sampler = PackedSampler(vocab_size=VOCAB, forbidden=frozenset({2}))
    bounds = pairwise([0, *sorted(cuts), len(logits)])
    scored = [sampler.score(logits[begin:end], batch.part(begin, end)) for begin, end in bounds]
    for part, whole in zip(sampler.decide(torch.cat(scored, dim=1), batch), sampler.sample(logits, batch), strict=True):
        assert part.tokens.tolist() == whole.tokens.tolist()
        assert part.confidence.tolist() == whole.confidence.tolist()
        assert part.accepted.tolist() == whole.accepted.tolist()


@given(count=st.integers(1, 40), joined=st.sets(st.integers(0, 39)), budget=st.integers(2, 12))
def test_parts_of_the_head_cover_it_in_order_and_stay_within_the_budget(
    count: int, joined: set[int], budget: int
) -> None:
    at = np.array(sorted(row for row in joined if row < count), dtype=np.int64)
    parts = parts_of_head(count, at, budget)
    assert [row for begin, end in parts for row in range(begin, end)] == list(range(count))
    costs = [end - begin + int(((at >= begin) & (at < end)).sum()) for begin, end in parts]
    assert max(costs) <= budget
    assert all(first + second > budget - 1 for first, second in pairwise(costs))
