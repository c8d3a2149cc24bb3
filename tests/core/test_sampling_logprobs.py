"""Log probabilities beside decisions: of the plain distribution, for whoever asks, however the work is divided."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from diffulex_core.distributed import Communicator
from diffulex_core.sampling import PackedSampler
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.testing.thread_group import ThreadGroup
from diffulex_core.types import Decision, LogProbabilities, Questions
from tests.core.sampler_oracle import Asked, Group, batch_of, decide, logits_of

ROW = st.lists(st.integers(-6, 6).map(float), min_size=5, max_size=5)
PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.5, 3.0]),
    top_k=st.sampled_from([None, 1, 2]),
    top_p=st.sampled_from([1.0, 0.4]),
    seed=st.integers(0, 5),
    logprobs=st.none() | st.integers(0, 7),
    logit_bias=st.sampled_from([{}, {1: 3.0}, {0: -math.inf}]),
)
ASKED = st.lists(
    st.builds(Asked, groups=st.lists(st.builds(Group, logits=st.lists(ROW, min_size=1, max_size=3))), params=PARAMS),
    min_size=1,
    max_size=3,
)
FORBIDDEN = frozenset({4})


def plain(row: Sequence[float], params: SamplingParams) -> dict[int, float]:
    """Log probabilities before temperature and limits; tokens that are never chosen are left out."""
    scores = {
        token: score + params.logit_bias.get(token, 0.0) for token, score in enumerate(row) if token not in FORBIDDEN
    }
    possible = {token: score for token, score in scores.items() if score > -math.inf}
    total = math.log(sum(math.exp(score) for score in possible.values()))
    return {token: score - total for token, score in possible.items()}


def check(decision: Decision, asked: Asked) -> None:
    rows = [row for group in asked.groups for row in group.logits]
    told = decision.logprobs
    if asked.params.logprobs is None:
        assert told is None
        return
    assert told is not None
    assert len(told.chosen) == len(rows)
    for at, row in enumerate(rows):
        known = plain(row, asked.params)
        assert told.chosen[at] == pytest.approx(known[int(decision.tokens[at])], abs=1e-5)
        best = sorted(known, key=lambda token: (-known[token], -token))[: asked.params.logprobs]
        assert told.tokens[at, : len(best)].tolist() == best
        assert told.most[at, : len(best)].tolist() == pytest.approx([known[token] for token in best], abs=1e-5)
        assert (told.most[at, len(best) :] == -math.inf).all()


@given(ASKED)
@settings(max_examples=150)
def test_they_are_those_of_the_distribution_before_temperature_and_limits(asked: list[Asked]) -> None:
    if not any(each.groups for each in asked):
        return
    for each, decision in zip(asked, decide(*asked, forbidden=FORBIDDEN), strict=True):
        check(decision, each)


@given(ASKED)
def test_asking_changes_no_decision(asked: list[Asked]) -> None:
    if not any(each.groups for each in asked):
        return
    silent = [attrs.evolve(each, params=attrs.evolve(each.params, logprobs=None)) for each in asked]
    for decision, without in zip(decide(*asked), decide(*silent), strict=True):
        assert decision.tokens.tolist() == without.tokens.tolist()
        assert decision.confidence.tobytes() == without.confidence.tobytes()
        assert decision.accepted.tolist() == without.accepted.tolist()


def some_rows(count: int, vocab: int, params: dict[str, Any], seed: int = 0) -> Asked:
    rows = torch.randn(count, vocab, generator=torch.Generator().manual_seed(seed)).double() * 3
    return Asked(groups=[Group(logits=rows.tolist())], params=SamplingParams(**params))


def parts_of(told: LogProbabilities | None) -> tuple[bytes, bytes, bytes]:
    assert told is not None
    return told.chosen.tobytes(), told.tokens.tobytes(), told.most.tobytes()


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_tell_what_one_process_tells(size: int) -> None:
    asked = [
        some_rows(3, 11, {"temperature": 0.7, "logprobs": 4, "seed": 1}),
        some_rows(2, 11, {"temperature": 0.0}, seed=1),
        some_rows(1, 11, {"temperature": 0.0, "logprobs": 0}, seed=2),
    ]
    logits, batch = logits_of(asked), batch_of(asked)
    padded = torch.nn.functional.pad(logits, (0, -11 % size), value=torch.nan)

    def on_rank(tp: Communicator) -> list[Decision]:
        sampler = PackedSampler(vocab_size=11, forbidden=FORBIDDEN, tp=tp)
        return list(sampler.sample(padded.chunk(size, dim=1)[tp.rank], batch))

    alone = decide(*asked, vocab_size=11, forbidden=FORBIDDEN)
    for decisions in ThreadGroup(size).run(on_rank):
        assert decisions[1].logprobs is None
        for each, one in ((decisions[at].logprobs, alone[at].logprobs) for at in (0, 2)):
            assert each is not None
            assert one is not None
            assert each.tokens.tolist() == one.tokens.tolist()
            np.testing.assert_allclose(each.chosen, one.chosen, rtol=1e-5)
            np.testing.assert_allclose(each.most, one.most, rtol=1e-5)


@pytest.mark.parametrize("cut", range(1, 6))
def test_rows_that_are_scored_in_parts_tell_the_same(cut: int) -> None:
    asked = [some_rows(3, 9, {"temperature": 0.0, "logprobs": 3}), some_rows(3, 9, {"temperature": 0.0}, seed=1)]
    logits, batch = logits_of(asked), batch_of(asked)
    sampler = PackedSampler(vocab_size=9, forbidden=FORBIDDEN)
    parts = [sampler.score(logits[a:b], batch.part(a, b)) for a, b in ((0, cut), (cut, 6))]
    joined = sampler.decide(torch.cat(parts, dim=1), batch)
    assert parts_of(joined[0].logprobs) == parts_of(sampler.sample(logits, batch)[0].logprobs)
    assert joined[1].logprobs is None


def test_a_row_tells_the_same_bits_whoever_else_asks() -> None:
    one = some_rows(1, 300, {"temperature": 0.0, "logprobs": 2})
    others = [some_rows(4, 300, {"temperature": 0.0, "logprobs": 9}, seed=3), some_rows(2, 300, {}, seed=4)]
    [alone] = decide(one)
    first, *_ = decide(one, *others)
    assert parts_of(first.logprobs) == parts_of(alone.logprobs)


def test_a_token_far_below_what_float32_can_tell_apart_from_zero_still_has_a_number() -> None:
    asked = Asked(groups=[Group(logits=[[0.0, -900.0]])], params=SamplingParams(temperature=0.0, logprobs=2))
    [decision] = decide(asked)
    assert decision.logprobs is not None
    assert decision.logprobs.most.tolist() == [[0.0, -900.0]]


def test_questions_and_log_probabilities_come_back_side_by_side() -> None:
    asked = some_rows(3, 9, {"temperature": 0.0, "logprobs": 2})
    questions = Questions(most=4, discouraged=np.full(3, -1, dtype=np.int64), penalty=np.zeros(3), watched=np.arange(3))
    batch = attrs.evolve(batch_of([asked]), questions=questions)
    [plainly] = decide(asked)
    [both] = PackedSampler(vocab_size=9, forbidden=frozenset()).sample(logits_of([asked]), batch)
    assert both.alternatives is not None
    assert both.watched is not None
    assert both.logprobs is not None
    assert both.alternatives.tokens.shape == (3, 4)
    assert parts_of(both.logprobs) == parts_of(plainly.logprobs)
    np.testing.assert_allclose(both.alternatives.probabilities[:, 0], np.exp(both.logprobs.chosen), rtol=1e-6)
