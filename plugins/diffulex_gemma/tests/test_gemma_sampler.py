"""What the sampler says of a canvas, against a plain restatement, on one process and on several."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from diffulex_core.distributed import ALONE, Communicator
from diffulex_core.packing import pack
from diffulex_core.pattern import Phase
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.testing.thread_group import ThreadGroup, together
from diffulex_core.types import SampleGroup, SamplingBatch, Span, StepPlan, Window
from diffulex_gemma.decision import CanvasDecision
from diffulex_gemma.pattern import CausalCanvas
from diffulex_gemma.sampler import CanvasSampler
from tests.families.native_canvases import TABLE

VOCAB = 13
WIDTH = 16
"""Columns of the head: three are padding."""


def batch_of(*windows: tuple[int, float | None, dict[str, Any]]) -> SamplingBatch:
    """A canvas for each (length, temperature, parameters), seeds and steps numbered through."""
    planned = []
    for number, (length, temperature, params) in enumerate(windows):
        at = np.arange(length)
        group = SampleGroup(
            block=0,
            positions=at,
            rows=at,
            accept_threshold=float("inf"),
            force_one=False,
            temperature=temperature,
        )
        span = Span(start=0, tokens=at, catch_up=0, store_until=0, phase=Phase.DECODE, groups=(group,), advances=True)
        planned.append(
            Window(
                request_id=number,
                span=span,
                prompt_len=0,
                page_table=np.array([number]),
                params=SamplingParams(seed=number + 5, **params),
                draw=number,
            )
        )
    plan = StepPlan(step=0, windows=tuple(planned))
    return pack(plan, CausalCanvas(block_size=4), [None], 32).sampling


def logits_of(rows: int, seed: int, scale: float = 3.0) -> Tensor:
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed)) * scale


def sample(logits: Tensor, batch: SamplingBatch, tp: Communicator = ALONE) -> tuple[list[CanvasDecision], Tensor]:
    columns = WIDTH // tp.size
    sampler = CanvasSampler(vocab_size=VOCAB, forbidden=frozenset(), tp=tp, draws=TABLE)
    own = logits[:, tp.rank * columns : (tp.rank + 1) * columns]
    scored, believed = sampler.score_and_believe(own, batch)
    decisions = sampler.decide(scored, batch)
    assert all(isinstance(decision, CanvasDecision) for decision in decisions)
    return [decision for decision in decisions if isinstance(decision, CanvasDecision)], believed


@settings(deadline=None)
@given(
    seed=st.integers(0, 10**6),
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    temperatures=st.tuples(*[st.sampled_from([0.0, 0.05, 0.4, 0.8, 2.0])] * 3),
)
def test_it_says_the_best_token_a_drawn_one_and_the_entropy(
    seed: int, lengths: list[int], temperatures: tuple[float, ...]
) -> None:
    batch = batch_of(*((length, t, {}) for length, t in zip(lengths, temperatures, strict=False)))
    logits = logits_of(sum(lengths), seed)
    before = logits.clone()
    decisions, _ = sample(logits, batch)
    assert torch.equal(logits, before)
    row = 0
    for number, (decision, t) in enumerate(zip(decisions, temperatures, strict=False)):
        assert decision.finite
        assert not decision.accepted.any()
        for position in range(lengths[number]):
            scores = logits[row, :VOCAB].double().numpy() / max(t, 1e-10)
            weights = np.exp(scores - scores.max())
            weights /= weights.sum()
            number_drawn = TABLE.sampling(*(np.array([value]) for value in (number + 5, number, position)))[0]
            assert decision.tokens[position] == int(np.argmax(weights))
            assert decision.drawn[position] == int(np.argmax(np.cumsum(weights) > number_drawn))
            terms = [weight * np.log(weight) for weight in weights if weight > 0]
            assert decision.entropy[position] == pytest.approx(-sum(terms), abs=1e-5)
            assert decision.confidence[position] == pytest.approx(weights.max(), abs=1e-5)
            row += 1


def test_temperature_zero_takes_the_best_token_and_is_certain() -> None:
    [decision], _ = sample(logits_of(5, 0), batch_of((5, 0.0, {"temperature": 2.0})))
    assert np.array_equal(decision.drawn, decision.tokens)
    assert decision.entropy.max() == 0.0
    assert decision.confidence.min() == 1.0


def test_the_temperature_of_a_request_is_not_heeded() -> None:
    logits = logits_of(5, 0)
    [cold], _ = sample(logits, batch_of((5, 0.6, {"temperature": 0.0})))
    [hot], _ = sample(logits, batch_of((5, 0.6, {"temperature": 9.0})))
    assert np.array_equal(cold.drawn, hot.drawn)
    assert np.array_equal(cold.entropy, hot.entropy)


def test_what_was_decided_from_is_tempered_and_knows_no_padding() -> None:
    logits = logits_of(4, 1)
    _, believed = sample(logits, batch_of((4, 0.5, {})))
    torch.testing.assert_close(believed[:, :VOCAB], logits[:, :VOCAB] / 0.5)
    assert (believed[:, VOCAB:] == -torch.inf).all()


def test_bias_and_limits_see_the_distribution_before_the_temperature() -> None:
    logits = logits_of(4, 2)
    params = {"logit_bias": {3: 2.5, 5: -float("inf")}, "top_p": 0.7}
    _, believed = sample(logits, batch_of((4, 0.1, params)))
    scores = logits[:, :VOCAB].clone()
    scores[:, 3] += 2.5
    scores[:, 5] = -torch.inf
    for row, seen in zip(scores, believed, strict=True):
        ordered = row.softmax(0).sort(descending=True)
        before = ordered.values.cumsum(0) - ordered.values
        stay = set(ordered.indices[before <= 0.7].tolist())
        assert set(torch.isfinite(seen).nonzero().flatten().tolist()) == stay
        for token in stay:
            assert seen[token] == pytest.approx(float(row[token]) / 0.1, rel=1e-5)


def test_a_row_that_is_no_number_spoils_its_own_request_only() -> None:
    logits = logits_of(6, 3)
    logits[1, 4] = torch.nan
    decisions, _ = sample(logits, batch_of((3, 0.5, {}), (3, 0.5, {})))
    assert [decision.finite for decision in decisions] == [False, True]


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6), size=st.sampled_from([2, 4, 8]))
def test_several_processes_say_what_one_says(seed: int, size: int) -> None:
    batch = batch_of((3, 0.3, {}), (1, 0.0, {}), (4, 1.2, {"top_k": 4, "logit_bias": {2: 5.0}}))
    logits = logits_of(8, seed)
    whole, believed = sample(logits, batch)
    answers = together(size, lambda tp: sample(logits, batch, tp))
    torch.testing.assert_close(torch.cat([part for _, part in answers], dim=1), believed)
    for decisions, _ in answers:
        for one, other in zip(whole, decisions, strict=True):
            assert np.array_equal(one.tokens, other.tokens)
            assert np.array_equal(one.drawn, other.drawn)
            assert np.allclose(one.entropy, other.entropy, atol=1e-5)
            assert np.allclose(one.confidence, other.confidence, atol=1e-5)


def test_processes_exchange_a_few_numbers_a_row() -> None:
    group = ThreadGroup(2)
    group.run(lambda tp: sample(logits_of(8, 0), batch_of((8, 0.5, {})), tp))
    assert [said.numbers for said in group.log] == [8, 5 * 8]


def test_a_row_has_the_same_bits_whatever_stands_beside_it() -> None:
    logits = logits_of(9, 4)
    decisions, _ = sample(logits, batch_of((1, 0.5, {}), (4, 0.7, {}), (4, 0.2, {})))
    [alone], _ = sample(logits[:1], batch_of((1, 0.5, {})))
    assert np.array_equal(decisions[0].entropy, alone.entropy)
    assert np.array_equal(decisions[0].confidence, alone.confidence)


def test_log_probabilities_are_those_of_the_best_token_before_temperature_and_limits() -> None:
    logits = logits_of(5, 6)
    params = {"logprobs": 2, "top_k": 1}
    silent, asking = sample(logits, batch_of((2, 0.2, {}), (3, 0.2, params)))[0]
    assert silent.logprobs is None
    told = asking.logprobs
    assert told is not None
    logs = logits[2:, :VOCAB].double().log_softmax(dim=1)
    best = logs.topk(2, dim=1)
    assert np.array_equal(told.tokens, best.indices.numpy())
    assert np.allclose(told.most, best.values.numpy(), atol=1e-5)
    assert np.allclose(told.chosen, logs.gather(1, torch.from_numpy(asking.tokens)[:, None])[:, 0].numpy(), atol=1e-5)
