"""What the sampler tells beyond a token: against plain arithmetic, on one process and on several."""

from __future__ import annotations

import attrs
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from diffulex_core.distributed import Communicator
from diffulex_core.sampling import PackedSampler
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.testing.thread_group import ThreadGroup
from diffulex_core.types import Decision, Questions
from tests.core.sampler_oracle import Asked, Group, batch_of

VOCAB, FORBIDDEN = 11, 4


def ask(
    logits: list[list[float]], questions: Questions, *, ranks: int = 1, params: SamplingParams | None = None
) -> Decision:
    """The decision for one window, equal on all ranks that hold the vocabulary."""
    rows = torch.tensor(logits)
    rows = torch.cat((rows, torch.full((len(rows), -VOCAB % ranks), torch.nan)), dim=1)
    group = Group(logits=logits)
    batch = batch_of([Asked(groups=[group], params=params or SamplingParams(temperature=0.0))])
    batch = attrs.evolve(batch, questions=questions, clean_confidence=np.array([True]))
    held = rows.chunk(ranks, dim=1)

    def decide(tp: Communicator) -> Decision:
        sampler = PackedSampler(vocab_size=VOCAB, forbidden=frozenset({FORBIDDEN}), tp=tp)
        [decision] = sampler.sample(held[tp.rank], batch)
        return decision

    first, *others = ThreadGroup(ranks).run(decide)
    for other in others:
        assert other.tokens.tobytes() == first.tokens.tobytes()
        assert other.watched_log is not None
        assert first.watched_log is not None
        assert other.watched_log.tobytes() == first.watched_log.tobytes()
        assert (other.alternatives is None) == (first.alternatives is None)
        if first.alternatives is None or other.alternatives is None:
            continue
        assert other.alternatives.tokens.tobytes() == first.alternatives.tokens.tobytes()
        assert other.alternatives.probabilities.tobytes() == first.alternatives.probabilities.tobytes()
    return first


@st.composite
def rows_and_questions(draw: st.DrawFn) -> tuple[list[list[float]], Questions]:
    count = draw(st.integers(1, 3))
    token = st.integers(-1, VOCAB - 1)
    each = st.lists(token, min_size=count, max_size=count).map(np.array)
    logits = draw(
        st.lists(
            st.lists(st.sampled_from([-2.0, 0.0, 0.5, 0.5, 3.0]), min_size=VOCAB, max_size=VOCAB),
            min_size=count,
            max_size=count,
        )
    )
    questions = Questions(
        most=draw(st.integers(1, 4)),
        discouraged=draw(each),
        penalty=np.full(count, draw(st.sampled_from([0.0, 0.75, 4.0]))),
        watched=draw(each),
        raw=draw(st.none() | st.lists(st.booleans(), min_size=count, max_size=count).map(np.array)),
    )
    return logits, questions


@settings(max_examples=40, deadline=None)
@given(asked=rows_and_questions(), ranks=st.sampled_from([1, 2, 3]), hot=st.booleans())
def test_answers_are_those_of_plain_arithmetic_before_temperature_and_limits(
    asked: tuple[list[list[float]], Questions], ranks: int, hot: bool
) -> None:
    logits, questions = asked
    params = SamplingParams(temperature=2.0, top_k=2, seed=3) if hot else None
    decision = ask(logits, questions, ranks=ranks, params=params)
    assert decision.alternatives is not None
    assert decision.watched is not None
    assert decision.watched_log is not None
    for row, scores in enumerate(logits):
        lowered = list(scores)
        if questions.discouraged[row] >= 0:
            lowered[questions.discouraged[row]] -= questions.penalty[row]
        lowered[FORBIDDEN] = -np.inf
        chances = np.exp(lowered) / np.exp(lowered).sum()
        np.testing.assert_allclose(decision.confidence[row], chances[decision.tokens[row]], rtol=1e-5)
        if questions.raw is not None and questions.raw[row]:
            lowered = list(scores)
            chances = np.exp(lowered) / np.exp(lowered).sum()
        order = sorted(range(VOCAB), key=lambda token: (-lowered[token], -token))[: questions.most]
        assert decision.alternatives.tokens[row].tolist() == order
        np.testing.assert_allclose(decision.alternatives.probabilities[row], chances[order], rtol=1e-6)
        watched = questions.watched[row]
        chance = chances[watched] if watched >= 0 else 0.0
        np.testing.assert_allclose(decision.watched[row], chance, rtol=1e-6)
        with np.errstate(divide="ignore"):
            np.testing.assert_allclose(decision.watched_log[row], np.log(chance), rtol=1e-6, atol=1e-6)


def test_who_asks_nothing_is_told_nothing() -> None:
    [decision] = PackedSampler(vocab_size=VOCAB, forbidden=frozenset()).sample(
        torch.zeros(1, VOCAB), batch_of([Asked(groups=[Group(logits=[[0.0] * VOCAB])])])
    )
    assert decision.alternatives is None
    assert decision.watched is None
    assert decision.watched_log is None


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_logarithm_is_told_where_the_probability_is_too_small(ranks: int) -> None:
    scores = [0.0] * VOCAB
    scores[0], scores[9] = 300.0, -500.0
    questions = Questions(most=0, discouraged=np.array([-1]), penalty=np.zeros(1), watched=np.array([9]))
    decision = ask([scores], questions, ranks=ranks)
    assert decision.watched is not None
    assert decision.watched_log is not None
    assert decision.watched.tolist() == [0.0]
    assert decision.watched_log == pytest.approx([-800.0])


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_discouraged_token_loses_to_the_next_one(ranks: int) -> None:
    scores = [0.0] * VOCAB
    scores[7], scores[2] = 3.0, 2.0
    questions = Questions(most=1, discouraged=np.array([7]), penalty=np.array([1.5]), watched=np.array([-1]))
    assert ask([scores], questions, ranks=ranks).tokens.tolist() == [2]
