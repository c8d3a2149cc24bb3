"""The packed sampler over a vocabulary that several ranks hold: what one process would decide, from a few numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings, strategies as st
from numpy.typing import NDArray
from torch import Tensor

from diffulex_core.distributed import Communicator
from diffulex_core.sampling import PackedSampler
from diffulex_core.sampling.choose import draw
from diffulex_core.sampling.filters import restrict
from diffulex_core.sampling.rng import uniform
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.testing.thread_group import Collective, ThreadGroup, together
from diffulex_core.types import Decision, SamplingBatch
from tests.core.sampler_oracle import Asked, Group, accepted, batch_of, distribution

SIZES = (2, 3, 4, 8)
EVERYTHING: dict[str, Any] = {"temperature": 0.7, "top_p": 0.9, "top_k": 40, "min_p": 0.01, "seed": 4}


def columns_of(logits: Tensor, size: int) -> list[Tensor]:
    """The columns that each rank holds; those past the last real one are poisoned."""
    missing = -logits.shape[1] % size
    padding = torch.full((len(logits), missing), torch.nan, dtype=logits.dtype)
    return list(torch.cat((logits, padding), dim=1).chunk(size, dim=1))


def real(columns: Tensor) -> Tensor:
    """The columns as the sampler leaves them: those that mean nothing cannot be chosen."""
    return columns.masked_fill(columns.isnan(), -torch.inf)


def decide_on_ranks(
    logits: Tensor, batch: SamplingBatch, size: int, *, vocab_size: int = 0, forbidden: frozenset[int] = frozenset()
) -> tuple[list[Decision], list[Collective]]:
    """What `size` ranks decide, which must be the same on all of them, and what they said to each other."""
    held = columns_of(logits, size)
    group = ThreadGroup(size)

    def decide(tp: Communicator) -> list[Decision]:
        sampler = PackedSampler(vocab_size=vocab_size or logits.shape[1], forbidden=forbidden, tp=tp)
        return list(sampler.sample(held[tp.rank], batch))

    first, *others = group.run(decide)
    for other in others:
        assert [bits(decision) for decision in other] == [bits(decision) for decision in first]
    return first, group.log


def bits(decision: Decision) -> tuple[bytes, bytes, bytes, bool]:
    return decision.tokens.tobytes(), decision.confidence.tobytes(), decision.accepted.tobytes(), decision.finite


def rows_of(count: int, vocab: int, seed: int = 0, *, spread: float = 3.0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(count, vocab)) * spread).float()


def empty_rows(count: int, params: SamplingParams, **group: Any) -> SamplingBatch:
    """A batch of one request whose logits are given apart."""
    return batch_of([Asked(groups=[Group(logits=[[0.0]] * count, **group)], params=params)])


@attrs.frozen(kw_only=True)
class Call:
    """A sampler call over a small vocabulary with many equal logits."""

    asked: Sequence[Asked]
    logits: Tensor
    vocab_size: int
    forbidden: frozenset[int]
    size: int


@st.composite
def calls(draw: st.DrawFn) -> Call:
    size, vocab = draw(st.sampled_from(SIZES)), draw(st.integers(2, 21))
    columns = vocab + draw(st.integers(0, 4))
    forbidden = draw(st.sampled_from([frozenset[int](), frozenset({0}), frozenset({vocab - 1, vocab + 1})]))
    number = st.integers(-12, 12).map(lambda each: each / 4)
    rows = st.lists(st.lists(number, min_size=columns, max_size=columns), min_size=1, max_size=4)
    asked = [
        Asked(
            groups=[
                Group(
                    logits=draw(rows),
                    threshold=draw(st.sampled_from([0.0, 0.15, 0.3, 0.9])),
                    force_one=draw(st.booleans()),
                )
                for _ in range(draw(st.integers(0, 2)))
            ],
            params=SamplingParams(
                temperature=draw(st.sampled_from([0, 0.5, 1.0, 2.0])),
                top_p=draw(st.sampled_from([1.0, 0.83, 0.41, 0.01])),
                top_k=draw(st.sampled_from([None, 1, 3, 100])),
                min_p=draw(st.sampled_from([0.0, 0.23, 1.0])),
                seed=draw(st.integers(0, 2**62)),
                confidence=draw(st.sampled_from(["prob", "margin", "neg_entropy"])),
                logit_bias=draw(st.sampled_from([{}, {1: 1.5}, {1: -2.0, vocab - 1: 0.5}, {0: 9.0, vocab: 50.0}])),
            ),
            draw=draw(st.integers(0, 3)),
        )
        for _ in range(draw(st.integers(1, 3)))
    ]
    logits = [row for each in asked for group in each.groups for row in group.logits]
    assume(logits)
    return Call(asked=asked, logits=torch.tensor(logits), vocab_size=vocab, forbidden=forbidden, size=size)


def decided_by_rounding(row: Sequence[float], number: float, params: SamplingParams, call: Call) -> bool:
    """Whether top_p (which one process sums in float32) or the drawn number lies where rounding decides."""
    free = attrs.evolve(params, top_p=1.0, top_k=None, min_p=0.0)
    before = np.cumsum(np.sort(distribution(row, free, vocab_size=call.vocab_size, forbidden=call.forbidden))[::-1])
    if params.top_p < 1 and np.abs(before - params.top_p).min() < 1e-4:
        return True
    ends = np.cumsum(distribution(row, params, vocab_size=call.vocab_size, forbidden=call.forbidden))
    return params.temperature > 0 and bool(np.abs(ends - number).min() < 1e-6)


@given(calls())
@settings(deadline=None)
def test_many_ranks_decide_what_one_process_decides(call: Call) -> None:
    batch = batch_of(call.asked)
    for index, row in enumerate(call.logits.tolist()):
        window = batch.windows[batch.window_of_row[index]]
        words = (window.params.seed or 0, window.draw, batch.positions[index])
        number = float(uniform(*(np.array([word], dtype=np.int64) for word in words))[0])
        assume(not decided_by_rounding(row, number, window.params, call))
    sampler = PackedSampler(vocab_size=call.vocab_size, forbidden=call.forbidden)
    alone = sampler.sample(call.logits, batch)
    many, _ = decide_on_ranks(call.logits, batch, call.size, vocab_size=call.vocab_size, forbidden=call.forbidden)
    for one, other, each in zip(alone, many, call.asked, strict=True):
        assert other.finite
        assert other.tokens.tolist() == one.tokens.tolist()
        np.testing.assert_allclose(other.confidence, one.confidence, atol=2e-6)
        owners = [number for number, group in enumerate(each.groups) for _ in group.logits]
        assert other.accepted.tolist() == accepted(other.confidence.tolist(), owners, each.groups)


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(SIZES),
    st.sampled_from([1.0, 0.97, 0.6, 1e-6]),
    st.sampled_from([1, 7, 300, 5000]),
    st.sampled_from([0.0, 1e-4, 0.2, 1.0]),
    st.booleans(),
)
@settings(deadline=None)
def test_limits_keep_exactly_the_first_tokens_in_the_order_of_probability(
    seed: int, size: int, top_p: float, top_k: int, min_p: float, coarse: bool
) -> None:
    """Exactly, in fp64: only what lies within 1e-9 of a limit is left to rounding."""
    row = rows_of(1, 1999, seed)
    if coarse:
        row = (row * 2).round() / 2  # many equals, both zeros
    wide = row[0].double().numpy()
    order = np.lexsort((-np.arange(len(wide)), -wide))
    probabilities = np.exp(wide - wide.max())
    relative = probabilities[order]
    probabilities = relative / relative.sum()
    before = np.cumsum(probabilities) - probabilities
    limit, share = float(np.float32(top_p)), float(np.float32(min_p))
    assume(top_p == 1 or np.abs(before - limit).min() > 1e-9)
    assume(min_p in (0, 1) or np.abs(relative / share - 1).min() > 1e-6)
    keep = ((before <= limit) | (top_p == 1)) & (np.arange(len(order)) < top_k) & (relative >= share)
    expected = set(order[keep].tolist())

    held = columns_of(row, size)
    settings_of = torch.tensor([top_p]), torch.tensor([top_k]), torch.tensor([min_p])

    def kept(tp: Communicator) -> Tensor:
        return restrict(real(held[tp.rank]), *settings_of, tp)

    result = torch.cat(together(size, kept), dim=1)[0, : len(wide)]
    assert set(torch.isfinite(result).nonzero()[:, 0].tolist()) == expected
    assert torch.equal(result[torch.isfinite(result)], row[0][torch.isfinite(result)])


@given(st.integers(0, 2**32 - 1), st.sampled_from(SIZES), st.integers(1, 700))
@settings(deadline=None)
def test_the_same_number_draws_the_same_token_however_many_ranks_hold_the_columns(
    seed: int, size: int, vocab: int
) -> None:
    rows, random = rows_of(40, vocab, seed, spread=6.0), np.random.default_rng(seed)
    rows[random.random(rows.shape) < 0.3] = -torch.inf
    rows[:, random.integers(vocab)] = 0.0
    numbers = random.random(40)
    exact = np.exp(rows.double().numpy())
    ends = np.cumsum(exact, axis=1) / exact.sum(axis=1, keepdims=True)
    assume(np.abs(ends - numbers[:, None]).min() > 1e-12)
    held, given_numbers = columns_of(rows, size), torch.from_numpy(numbers)

    def drawn(tp: Communicator) -> Tensor:
        column = draw(real(held[tp.rank]), given_numbers, tp)
        return torch.where(column < 0, -1, column + tp.rank * held[0].shape[1])

    offers = torch.stack(together(size, drawn))
    assert (offers >= 0).sum(dim=0).tolist() == [1] * 40, "one rank has the token"
    assert offers.amax(dim=0).tolist() == (ends <= numbers[:, None]).sum(axis=1).tolist()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("number", [0.0, 0.25, 0.5, 0.75, 1 - 2**-53])
def test_an_impossible_token_is_never_drawn_at_the_edges_between_ranks(size: int, number: float) -> None:
    row = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, 0.0, -torch.inf, -torch.inf, 0.0, -torch.inf]])
    held = columns_of(row, size)

    def drawn(tp: Communicator) -> int:
        column = draw(real(held[tp.rank]), torch.tensor([number], dtype=torch.float64), tp)
        return int(column) if int(column) < 0 else int(column) + tp.rank * held[0].shape[1]

    assert max(together(size, drawn)) == {0.0: 1, 0.25: 3, 0.5: 4, 0.75: 7}.get(number, 7)


@pytest.mark.parametrize("size", SIZES)
def test_rounding_where_one_rank_ends_and_the_next_begins_draws_no_impossible_token(size: int) -> None:
    rows = rows_of(300, 4 * size, seed=7)
    rows[:, 0::4] = rows[:, 3::4] = -torch.inf
    masses = rows.double().exp().unflatten(1, (size, 4)).sum(dim=2)
    ends = (masses.cumsum(dim=1) / masses.sum(dim=1, keepdim=True))[:, :-1]  # of all ranks but the last
    numbers = [ends]
    for _ in range(4):
        numbers = [numbers[0].nextafter(torch.zeros_like(ends)), *numbers, numbers[-1].nextafter(torch.ones_like(ends))]
    for number in torch.stack(numbers, dim=2).flatten(1).T:

        def drawn(tp: Communicator, number: Tensor = number) -> Tensor:
            return draw(rows.chunk(size, dim=1)[tp.rank], number, tp)

        offers = torch.stack(together(size, drawn))
        assert (offers >= 0).sum(dim=0).tolist() == [1] * len(rows)
        assert set(offers.amax(dim=0).tolist()) <= {1, 2}


@pytest.mark.parametrize("size", SIZES)
def test_ties_between_ranks_go_to_the_highest_id(size: int) -> None:
    rows = torch.zeros(3, 10)
    rows[1, [2, 7]] = 5.0
    rows[2, 9] = -1.0
    [decision], _ = decide_on_ranks(rows, empty_rows(3, SamplingParams(temperature=0)), size)
    assert decision.tokens.tolist() == [9, 7, 8]
    [allowed], _ = decide_on_ranks(
        rows, empty_rows(3, SamplingParams(temperature=0)), size, forbidden=frozenset({9, 8, 7})
    )
    assert allowed.tokens.tolist() == [6, 2, 6]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("limit", [{"top_k": 3}, {"top_p": 0.21}], ids=["top_k", "top_p"])
def test_among_equals_on_several_ranks_a_limit_keeps_the_highest_ids(size: int, limit: dict[str, Any]) -> None:
    batch = empty_rows(80, SamplingParams(temperature=1.0, seed=3, **limit))
    [decision], _ = decide_on_ranks(torch.zeros(80, 10), batch, size)
    assert set(decision.tokens.tolist()) == {7, 8, 9}
    np.testing.assert_allclose(decision.confidence, 1 / 3, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["margin", "neg_entropy"])
@pytest.mark.parametrize("places", [(0, 1), (0, 10), (5, 6), (9, 10)])
def test_measures_find_the_two_best_tokens_wherever_they_are(size: int, kind: Any, places: tuple[int, int]) -> None:
    row = torch.full((1, 11), -torch.inf)
    row[0, list(places)] = torch.tensor([math.log(0.7), math.log(0.3)])
    [decision], _ = decide_on_ranks(row, empty_rows(1, SamplingParams(temperature=0, confidence=kind)), size)
    assert decision.tokens.tolist() == [places[0]]
    assert decision.confidence[0] == pytest.approx({"margin": 0.4, "neg_entropy": 0.7**0.7 * 0.3**0.3}[kind], abs=1e-6)


@pytest.mark.parametrize("size", [5, 8])
def test_ranks_without_any_real_column_take_part(size: int) -> None:
    """Three real ids: with eight ranks of one column each, five hold padding only, whatever it contains."""
    rows = torch.cat((rows_of(6, 3), torch.full((6, 2), torch.inf)), dim=1)
    for params in (SamplingParams(temperature=0), SamplingParams(**EVERYTHING)):
        batch = empty_rows(6, params)
        [alone] = PackedSampler(vocab_size=3, forbidden=frozenset()).sample(rows, batch)
        [many], _ = decide_on_ranks(rows, batch, size, vocab_size=3)
        assert many.finite
        assert many.tokens.tolist() == alone.tokens.tolist()
        np.testing.assert_allclose(many.confidence, alone.confidence, atol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("params", [{"temperature": 0}, EVERYTHING], ids=["greedy", "everything"])
@pytest.mark.parametrize("place", [0, 4, 8])
def test_a_number_that_is_not_finite_on_one_rank_ends_its_own_request_on_all(
    bad: float, params: dict[str, Any], place: int
) -> None:
    rows = rows_of(5, 9)
    rows[2, place] = bad
    window = Asked(groups=[Group(logits=[[0.0]], threshold=0.0, force_one=True)], params=SamplingParams(**params))
    decisions, _ = decide_on_ranks(rows, batch_of([attrs.evolve(window) for _ in rows]), 4)
    assert [decision.finite for decision in decisions] == [True, True, False, True, True]
    assert [bool(decision.accepted.all()) for decision in decisions] == [True, True, False, True, True]


@pytest.mark.parametrize("params", [{"temperature": 0}, EVERYTHING], ids=["greedy", "everything"])
def test_a_row_without_any_allowed_token_is_not_finite(params: dict[str, Any]) -> None:
    rows = torch.full((1, 9), -torch.inf)
    rows[0, 3] = 1.0
    [decision], _ = decide_on_ranks(
        rows, empty_rows(1, SamplingParams(**params), force_one=True), 4, forbidden=frozenset({3})
    )
    assert not decision.finite
    assert not decision.accepted.any()


def test_a_bias_counts_on_the_rank_that_holds_the_token() -> None:
    rows = torch.tensor([[3.0, 2.0, 1.0, 0.0, -1.0]])
    for token in range(5):
        pushed = SamplingParams(temperature=0, logit_bias={token: 20.0, 5: 90.0})
        [decision], _ = decide_on_ranks(rows, empty_rows(1, pushed), 3)
        assert decision.tokens.tolist() == [token]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_columns_are_accumulated_in_float32(dtype: torch.dtype) -> None:
    row = torch.full((1, 1001), -1.0, dtype=dtype)
    row[0, 0] = 6.0
    [decision], _ = decide_on_ranks(row, empty_rows(1, SamplingParams(temperature=0)), 4)
    assert decision.confidence[0] == pytest.approx(math.exp(6) / (math.exp(6) + 1000 * math.exp(-1)), rel=1e-5)


@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 3]), st.integers(1, 9))
@settings(deadline=None, max_examples=25)
def test_the_bits_of_a_decision_do_not_depend_on_who_else_is_in_the_batch(seed: int, size: int, mates: int) -> None:
    rows = rows_of(mates + 1, 203, seed)
    kinds = ("prob", "margin", "neg_entropy")
    asked = [
        Asked(
            groups=[Group(logits=[[0.0]])],
            params=SamplingParams(**{**EVERYTHING, "top_p": 0.5 + 0.05 * number, "confidence": kinds[number % 3]}),
        )
        for number in range(mates + 1)
    ]
    together_, _ = decide_on_ranks(rows, batch_of(asked), size)
    for number in {0, mates}:
        [alone], _ = decide_on_ranks(rows[number : number + 1], batch_of([asked[number]]), size)
        assert bits(alone) == bits(together_[number])


def mixed_batch(count: int) -> SamplingBatch:
    """Requests of every kind, `count` rows each."""
    settings_of: list[dict[str, Any]] = [
        {"temperature": 0},
        {"temperature": 0, "confidence": "margin", "logit_bias": {3: 1.0}},
        {"temperature": 1.0, "seed": 1, "confidence": "neg_entropy"},
        EVERYTHING,
    ]
    rows = [[0.0]] * count
    return batch_of([Asked(groups=[Group(logits=rows)], params=SamplingParams(**each)) for each in settings_of])


@pytest.mark.parametrize(
    ("params", "collectives"),
    [({"temperature": 0}, 1), ({"temperature": 1.0, "seed": 2}, 2), ({"temperature": 0, "top_k": 3}, 7)],
    ids=["greedy", "drawn", "limited"],
)
def test_a_call_costs_a_few_exchanges_and_only_what_its_requests_need(params: dict[str, Any], collectives: int) -> None:
    for count in (1, 30):
        _, log = decide_on_ranks(rows_of(count, 100), empty_rows(count, SamplingParams(**params)), 2)
        assert len(log) == collectives


def test_what_passes_between_ranks_does_not_grow_with_the_vocabulary() -> None:
    logs = [decide_on_ranks(rows_of(20, vocab), mixed_batch(5), 4)[1] for vocab in (40, 5_000, 60_000)]
    assert logs[0] == logs[1] == logs[2]
    assert len(logs[0]) == 8
    limited = 5
    assert sum(each.numbers for each in logs[0]) < 20 * 10 + limited * 4 * 2 * 300
    assert max(each.numbers for each in logs[0]) < 60_000 / 4


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=30), st.integers(1, 9))
@settings(deadline=None)
def test_top_k_orders_any_finite_numbers(values: list[float], top_k: int) -> None:
    """Subnormals, both zeros and the greatest numbers included."""
    row = torch.tensor([values])
    order: NDArray[np.int64] = np.lexsort((-np.arange(len(values)), -row[0].double().numpy()))
    held = columns_of(row, 3)

    def kept(tp: Communicator) -> Tensor:
        return restrict(real(held[tp.rank]), torch.tensor([1.0]), torch.tensor([top_k]), torch.tensor([0.0]), tp)

    result = torch.cat(together(3, kept), dim=1)[0, : len(values)]
    assert set(torch.isfinite(result).nonzero()[:, 0].tolist()) == set(order[:top_k].tolist())
