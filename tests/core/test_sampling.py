"""The packed sampler against its rules, row by row: which token, how sure, and what is accepted."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings, strategies as st

from diffulex_core.sampling import PackedSampler
from diffulex_core.sampling_params import Confidence, SamplingParams
from tests.core.sampler_oracle import (
    Asked,
    Group,
    Row,
    accepted,
    batch_of,
    decide,
    distribution,
    logits_of,
    nearest_cut,
)

VOCAB, COLUMNS = 9, 12
MASK = 4
GREEDY = SamplingParams(temperature=0)

numbers = st.integers(-12, 12).map(lambda number: number / 4)
rows = st.lists(numbers, min_size=COLUMNS, max_size=COLUMNS)


@st.composite
def groups(draw: st.DrawFn) -> Group:
    return Group(
        logits=draw(st.lists(rows, min_size=1, max_size=4)),
        threshold=draw(st.sampled_from([0.0, 0.15, 0.3, 0.9])),
        force_one=draw(st.booleans()),
    )


@st.composite
def params(draw: st.DrawFn, *, temperatures: tuple[float, ...] = (0, 0.5, 1.0, 2.0)) -> SamplingParams:
    return SamplingParams(
        temperature=draw(st.sampled_from(temperatures)),
        top_p=draw(st.sampled_from([1.0, 0.83, 0.41, 0.01])),
        top_k=draw(st.sampled_from([None, 1, 3, 100])),
        min_p=draw(st.sampled_from([0.0, 0.23, 1.0])),
        seed=draw(st.integers(0, 2**62)),
        logit_bias=draw(st.sampled_from([{}, {2: 1.5}, {0: -math.inf, 3: -2.0}, {MASK: 50.0, 11: 50.0}])),
    )


@st.composite
def calls(draw: st.DrawFn, *, temperatures: tuple[float, ...] = (0, 0.5, 1.0, 2.0)) -> list[Asked]:
    return [
        Asked(
            groups=draw(st.lists(groups(), min_size=0, max_size=3)),
            params=draw(params(temperatures=temperatures)),
            draw=draw(st.integers(0, 3)),
        )
        for _ in range(draw(st.integers(1, 4)))
    ]


def flat(each: Asked) -> list[Row]:
    return [row for group in each.groups for row in group.logits]


def clear_cut(asked: list[Asked]) -> bool:
    return any(flat(each) for each in asked) and all(
        nearest_cut(_unbiased(row, each.params), each.params, vocab_size=VOCAB) > 1e-4 or _unlimited(each.params)
        for each in asked
        for row in flat(each)
    )


def _unbiased(row: Row, given_params: SamplingParams) -> Row:
    allowed = [token for token in range(VOCAB) if token != MASK and given_params.logit_bias.get(token) != -math.inf]
    return [row[token] + given_params.logit_bias.get(token, 0.0) for token in allowed]


def _unlimited(given_params: SamplingParams) -> bool:
    return given_params.top_p == 1 and given_params.min_p in (0, 1)


@given(calls())
@settings(deadline=None)
def test_tokens_confidence_and_acceptance_follow_the_rules(asked: list[Asked]) -> None:
    assume(clear_cut(asked))
    decisions = decide(*asked, vocab_size=VOCAB, forbidden=frozenset({MASK}))
    assert len(decisions) == len(asked)
    for each, decision in zip(asked, decisions, strict=True):
        of_row = [number for number, group in enumerate(each.groups) for _ in group.logits]
        assert decision.finite
        assert len(decision.positions) == len(of_row)
        for row, token, confidence in zip(flat(each), decision.tokens, decision.confidence, strict=True):
            allowed = distribution(row, each.params, vocab_size=VOCAB, forbidden=frozenset({MASK}))
            assert allowed[token] > 0
            assert confidence == pytest.approx(allowed[token], abs=2e-6)
            if each.params.temperature == 0:
                assert token == max(range(VOCAB), key=lambda at: (allowed[at], at))
        expected = accepted(decision.confidence.tolist(), of_row, each.groups)
        assert decision.accepted.tolist() == expected


@given(calls())
@settings(deadline=None)
def test_only_asked_positions_are_decided_and_never_with_the_mask_or_a_padding_id(asked: list[Asked]) -> None:
    assume(any(flat(each) for each in asked))
    batch = batch_of(asked)
    for index, decision in enumerate(decide(*asked, vocab_size=VOCAB, forbidden=frozenset({MASK}))):
        assert decision.positions.tolist() == batch.positions[batch.window_of_row == index].tolist()
        assert not set(decision.tokens.tolist()) & {MASK, *range(VOCAB, COLUMNS)}
        assert len(decision.accepted) == len(decision.positions)


@given(calls(temperatures=(0, 1.0)), st.integers(-3, 3).map(lambda number: 64.0 * number))
@settings(deadline=None)
def test_a_constant_on_a_row_changes_no_token(asked: list[Asked], constant: float) -> None:
    assume(clear_cut(asked))
    moved = [
        attrs.evolve(
            each,
            groups=[
                attrs.evolve(group, logits=[[value + constant for value in row] for row in group.logits])
                for group in each.groups
            ],
        )
        for each in asked
    ]
    for one, other in zip(decide(*asked, vocab_size=VOCAB), decide(*moved, vocab_size=VOCAB), strict=True):
        assert one.tokens.tolist() == other.tokens.tolist()
        np.testing.assert_allclose(one.confidence, other.confidence, atol=1e-5)


@given(calls(), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_a_decision_does_not_depend_on_who_else_is_in_the_batch_or_where(asked: list[Asked], random: Random) -> None:
    assume(any(flat(each) for each in asked))
    together = decide(*asked, vocab_size=VOCAB)
    order = list(range(len(asked)))
    random.shuffle(order)
    shuffled = decide(*(asked[index] for index in order), vocab_size=VOCAB)
    for place, index in enumerate(order):
        for other in [shuffled[place], *(decide(asked[index], vocab_size=VOCAB) if flat(asked[index]) else [])]:
            assert together[index].tokens.tolist() == other.tokens.tolist()
            assert together[index].accepted.tolist() == other.accepted.tolist()
            assert together[index].confidence.tobytes() == other.confidence.tobytes()


@pytest.mark.parametrize("confidence", ["prob", "margin", "neg_entropy"])
@pytest.mark.parametrize("limits", [{}, {"top_p": 0.9}], ids=["all tokens", "top_p"])
def test_a_single_row_over_a_large_vocabulary_has_the_bits_that_it_has_among_others(
    confidence: Confidence, limits: dict[str, Any]
) -> None:
    random = np.random.default_rng(3)
    given_params = SamplingParams(temperature=1.0, seed=7, confidence=confidence, **limits)
    asked = [
        Asked(groups=[Group(logits=(random.normal(size=(1, 40_000)) * 3).tolist())], params=given_params)
        for _ in range(24)
    ]
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        together = decide(*asked)
        for decision, each in zip(together, asked, strict=True):
            for alone in (decide(each)[0], decide(Asked(groups=[Group(logits=asked[0].groups[0].logits)]), each)[1]):
                assert alone.tokens.tolist() == decision.tokens.tolist()
                assert alone.confidence.tobytes() == decision.confidence.tobytes()
    finally:
        torch.set_num_threads(threads)


@given(calls(), st.floats(0, 1), st.floats(0, 1))
@settings(deadline=None)
def test_a_lower_threshold_accepts_all_that_a_higher_one_accepts(asked: list[Asked], one: float, other: float) -> None:
    assume(any(flat(each) for each in asked))
    lower, higher = sorted((one, other))

    def taken(threshold: float) -> list[bool]:
        changed = [
            attrs.evolve(each, groups=[attrs.evolve(group, threshold=threshold) for group in each.groups])
            for each in asked
        ]
        return [bool(each) for decision in decide(*changed, vocab_size=VOCAB) for each in decision.accepted]

    assert all(low or not high for low, high in zip(taken(lower), taken(higher), strict=True))


def test_ties_go_to_the_highest_id() -> None:
    [decision] = decide(Asked(groups=[Group(logits=[[3, 1, 3, 3, 0], [0, 0, 0, 0, 0]])]), forbidden=frozenset({4}))
    assert decision.tokens.tolist() == [3, 3]
    assert decision.confidence.tolist() == pytest.approx([1 / (3 + math.exp(-2)), 0.25])


def test_among_equals_a_limit_keeps_the_highest_ids() -> None:
    equal = [Group(logits=[[0.0] * 4] * 60)]
    for limit in ({"top_k": 2}, {"top_p": 0.3}):
        drawn = decide(Asked(groups=equal, params=SamplingParams(temperature=1.0, seed=3, **limit)))[0]
        assert set(drawn.tokens.tolist()) == {2, 3}


def test_acceptance_is_strictly_above_the_threshold() -> None:
    half = [math.log(0.5), math.log(0.25), math.log(0.25)]
    exact = float(decide(Asked(groups=[Group(logits=[half])]))[0].confidence[0])
    for threshold, taken in ((exact, False), (np.nextafter(exact, 0), True), (np.nextafter(exact, 1), False)):
        [decision] = decide(Asked(groups=[Group(logits=[half], threshold=float(threshold))]))
        assert decision.accepted.tolist() == [taken]


def test_nothing_is_ever_surer_than_a_threshold_of_one() -> None:
    [decision] = decide(Asked(groups=[Group(logits=[[100.0, 0.0]], threshold=1.0)]))
    assert decision.confidence.tolist() == [1.0]
    assert decision.accepted.tolist() == [False]


def test_a_greedy_group_takes_the_most_probable_token_whatever_the_temperature() -> None:
    rows = [[float(token == at % 5) for token in range(6)] for at in range(20)]
    params = SamplingParams(temperature=100.0, seed=3)
    groups = [Group(logits=rows, threshold=-1.0, greedy=True), Group(logits=rows, threshold=-1.0)]
    [decision] = decide(Asked(groups=groups, params=params))
    best = [at % 5 for at in range(20)]
    assert decision.tokens[:20].tolist() == best
    assert decision.tokens[20:].tolist() != best
    assert decision.accepted.all()


def test_a_group_that_forces_one_takes_the_surest_and_the_first_of_equals() -> None:
    sure, unsure = [1.0, 0.0, 0.0], [0.5, 0.0, 0.0]
    asked = Asked(
        groups=[
            Group(logits=[unsure, sure, sure], positions=[3, 4, 5], force_one=True),
            Group(logits=[sure, unsure], positions=[8, 9], force_one=False),
            Group(logits=[unsure, sure], positions=[12, 13], threshold=0.5, force_one=True),
            Group(logits=[unsure, unsure], positions=[16, 17], threshold=0.5, force_one=True),
        ]
    )
    [decision] = decide(asked)
    assert decision.positions[decision.accepted].tolist() == [4, 13, 16]


def test_groups_and_requests_without_rows_get_an_empty_decision() -> None:
    [nothing, something, nothing_again] = decide(
        Asked(groups=[]), Asked(groups=[Group(logits=[[0.0, 9.0]])]), Asked(groups=[])
    )
    for decision in (nothing, nothing_again):
        assert len(decision.positions) == len(decision.tokens) == len(decision.accepted) == 0
        assert decision.finite
    assert something.tokens.tolist() == [1]


def test_the_logits_are_read_and_not_written() -> None:
    asked = [
        Asked(
            groups=[Group(logits=[[1.0, 2.0, 3.0, 4.0]])],
            params=SamplingParams(temperature=0.5, top_k=2, top_p=0.9, min_p=0.1, seed=1, logit_bias={1: 3.0}),
        )
    ]
    for dtype in (torch.float32, torch.bfloat16):
        logits = logits_of(asked, dtype)
        before = logits.clone()
        PackedSampler(vocab_size=3, forbidden=frozenset({0})).sample(logits, batch_of(asked))
        assert torch.equal(logits, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_accumulated_in_float32(dtype: torch.dtype) -> None:
    """A thousand small terms vanish in a sum of half precision, and 0.85 is no number of bfloat16."""
    row = [6.0, *[-1.0] * 1000]
    [decision] = decide(Asked(groups=[Group(logits=[row], threshold=0.5)]), dtype=dtype)
    expected = math.exp(6) / (math.exp(6) + 1000 * math.exp(-1))
    assert decision.confidence[0] == pytest.approx(expected, rel=1e-5)
    assert decision.accepted.tolist() == [True]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_that_is_not_finite_ends_its_own_request_only(bad: float, temperature: float) -> None:
    given_params = SamplingParams(temperature=temperature, seed=1)
    fine = Asked(groups=[Group(logits=[[5.0, 0.0, 0.0]], threshold=0.1, force_one=True)], params=given_params)
    broken = Asked(
        groups=[
            Group(logits=[[9.0, 0.0, 0.0], [0.0, bad, 0.0]], threshold=0.1, force_one=True),
            Group(logits=[[9.0, 0.0, 0.0]], threshold=0.1, force_one=True),
        ],
        params=given_params,
    )
    first, second, third = decide(fine, broken, fine)
    assert (first.finite, second.finite, third.finite) == (True, False, True)
    assert not second.accepted.any()
    assert first.accepted.all()
    assert third.accepted.all()
    assert first.tokens.tolist() == third.tokens.tolist()


def test_a_row_without_any_allowed_token_is_not_finite() -> None:
    none_left = [-math.inf, -math.inf, 0.0]
    [decision] = decide(Asked(groups=[Group(logits=[none_left], force_one=True)]), forbidden=frozenset({2}))
    assert not decision.finite
    assert not decision.accepted.any()


def test_what_lies_in_padding_columns_or_at_the_mask_does_no_harm() -> None:
    for bad in (math.nan, math.inf, 1e30):
        [decision] = decide(
            Asked(groups=[Group(logits=[[0.0, 2.0, bad, bad]], threshold=0.1)]),
            vocab_size=3,
            forbidden=frozenset({2}),
        )
        assert decision.finite
        assert decision.tokens.tolist() == [1]
        assert decision.confidence[0] == pytest.approx(1 / (1 + math.exp(-2)))


def test_tokens_of_minus_infinity_are_simply_impossible() -> None:
    [decision] = decide(
        Asked(groups=[Group(logits=[[-math.inf, 1.0, 1.0]] * 40)], params=SamplingParams(temperature=1.0, seed=5))
    )
    assert decision.finite
    assert set(decision.tokens.tolist()) == {1, 2}


@pytest.mark.parametrize("temperature", [1e-6, 0.1, 1e6])
def test_extreme_temperatures_stay_finite(temperature: float) -> None:
    given_params = SamplingParams(temperature=temperature, seed=2)
    [decision] = decide(Asked(groups=[Group(logits=[[40.0, -40.0, 39.0]] * 50)], params=given_params))
    assert decision.finite
    if temperature < 0.1:
        assert set(decision.tokens.tolist()) == {0}


MEASURES: dict[Confidence, float] = {
    "prob": 0.5,
    "margin": 0.5 - 0.3,
    "neg_entropy": 0.5**0.5 * 0.3**0.3 * 0.2**0.2,
}


@pytest.mark.parametrize("confidence", list(MEASURES))
def test_confidence_is_the_measure_that_the_request_chose(confidence: Confidence) -> None:
    row = [math.log(0.2), math.log(0.5), math.log(0.3)]
    asked = [
        Asked(groups=[Group(logits=[row])], params=SamplingParams(temperature=0, confidence=kind))
        for kind in (confidence, "prob")
    ]
    chosen, plain = decide(*asked)
    assert chosen.confidence[0] == pytest.approx(MEASURES[confidence], abs=1e-6)
    assert plain.confidence[0] == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("confidence", list(MEASURES))
def test_every_measure_accepts_a_sure_row_and_rejects_an_even_one(confidence: Confidence) -> None:
    rows = [[9.0, 0.0, 0.0], [1.0, 1.0, 1.0]]
    given_params = SamplingParams(temperature=0, confidence=confidence)
    [decision] = decide(Asked(groups=[Group(logits=rows, threshold=0.9)], params=given_params))
    assert decision.accepted.tolist() == [True, False]


@given(rows, st.sampled_from([None, 1, 2]))
@settings(deadline=None)
def test_margin_and_entropy_are_those_of_the_restricted_distribution(row: list[float], top_k: int | None) -> None:
    for kind in ("margin", "neg_entropy"):
        given_params = SamplingParams(temperature=0, top_k=top_k, confidence=kind)
        [decision] = decide(Asked(groups=[Group(logits=[row])], params=given_params), vocab_size=VOCAB)
        exact = distribution(row, given_params, vocab_size=VOCAB)
        first, second = sorted(exact, reverse=True)[:2]
        certainty = math.prod(value**value for value in exact)
        assert decision.confidence[0] == pytest.approx(first - second if kind == "margin" else certainty, abs=3e-6)


def test_a_bias_moves_one_request_only_and_may_forbid_a_token() -> None:
    row = [3.0, 2.0, 1.0]
    pushed = SamplingParams(temperature=0, logit_bias={2: 2.5})
    barred = SamplingParams(temperature=0, logit_bias={0: -math.inf})
    decisions = decide(*(Asked(groups=[Group(logits=[row, row])], params=each) for each in (pushed, GREEDY, barred)))
    assert [decision.tokens.tolist() for decision in decisions] == [[2, 2], [0, 0], [1, 1]]
    assert decisions[2].confidence[0] == pytest.approx(1 / (1 + math.exp(-1)))


def test_a_bias_on_ids_outside_the_vocabulary_does_nothing() -> None:
    given_params = SamplingParams(temperature=0, logit_bias={3: 9.0, 5000: 9.0})
    [decision] = decide(Asked(groups=[Group(logits=[[1.0, 2.0, 0.0, 0.0]])], params=given_params), vocab_size=3)
    assert decision.tokens.tolist() == [1]


def test_temperature_leaves_the_greedy_choice_and_confidence_alone_at_zero_only() -> None:
    row = [2.0, 1.0]
    hot = SamplingParams(temperature=2.0, seed=0)
    cold, warm = decide(Asked(groups=[Group(logits=[row])]), Asked(groups=[Group(logits=[row] * 30)], params=hot))
    assert cold.confidence[0] == pytest.approx(1 / (1 + math.exp(-1)))
    sure = 1 / (1 + math.exp(-0.5))
    for token, confidence in zip(warm.tokens, warm.confidence, strict=True):
        assert confidence == pytest.approx(sure if token == 0 else 1 - sure, abs=1e-6)
