"""When a request ends, and what it gives: lengths, stop tokens, forwards, repetition."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings, strategies as st

from diffulex_core.blocks import BlockRequest
from diffulex_core.pattern import BlockCausal, FullPrefix
from diffulex_core.req_context import AutoNFE
from diffulex_core.sampling_params import DecodingThresholds
from diffulex_core.types import CompletionReason
from tests.core.traces import EOS, MASK, accept_first, make_request, run


def counting(position: int) -> int:
    """A token that never repeats the one before it."""
    return position % 50


@given(st.integers(1, 13), st.integers(1, 20), st.integers(1, 4), st.integers(1, 4), st.booleans())
@settings(deadline=None)
def test_exactly_max_tokens_come_out_whatever_the_block_and_the_prompt(
    prompt_len: int, max_tokens: int, buffer_size: int, per_step: int, full_prefix: bool
) -> None:
    kind = FullPrefix if full_prefix else BlockCausal
    request = make_request(
        prompt_len, buffer_size=buffer_size, max_tokens=max_tokens, pattern=kind(block_size=4), ignore_eos=True
    )
    run(request, per_step, counting)
    assert request.output_tokens.tolist() == [counting(at) for at in range(prompt_len, prompt_len + max_tokens)]
    assert request.completion is CompletionReason.LENGTH_TOKENS
    assert MASK not in request.output_tokens


@pytest.mark.parametrize(
    ("max_model_len", "tokens", "reason"),
    [
        (7, 1, CompletionReason.LENGTH_CONTEXT),
        (11, 5, CompletionReason.LENGTH_CONTEXT),
        (15, 9, CompletionReason.LENGTH_CONTEXT),
        (16, 10, CompletionReason.LENGTH_TOKENS),
        (99, 10, CompletionReason.LENGTH_TOKENS),
    ],
)
def test_the_smaller_of_both_lengths_ends_a_request_and_is_named(
    max_model_len: int, tokens: int, reason: CompletionReason
) -> None:
    request = make_request(6, max_tokens=10, max_model_len=max_model_len)
    run(request, 2, counting)
    assert len(request.output_tokens) == tokens
    assert request.completion is reason


def test_no_request_ends_with_less_than_its_tokens_because_masks_were_counted() -> None:
    """Defect D-3: an aligned prompt with `max_tokens` of the whole buffer ended after its prefill, with masks only."""
    request = make_request(8, buffer_size=2, max_tokens=8)
    run(request, 1, counting)
    assert len(request.output_tokens) == 8


@pytest.mark.parametrize("max_nfe", [1, 2, 3, 7])
@pytest.mark.parametrize("buffer_size", [1, 3])
def test_max_nfe_ends_after_exactly_so_many_forwards_with_the_decided_prefix(max_nfe: int, buffer_size: int) -> None:
    request = make_request(6, buffer_size=buffer_size, max_tokens=100, max_nfe=max_nfe)
    rows = run(request, 1, counting)
    assert len(rows) == request.nfe == max_nfe
    assert request.completion is CompletionReason.NFE_LIMIT
    assert request.output_tokens.tolist() == [counting(6 + at) for at in range(max_nfe)]


def test_max_nfe_counts_the_pieces_of_the_prompt() -> None:
    request = make_request(12, max_tokens=100, max_nfe=2)
    for stored in (0, 4):
        span = request.plan(stored, 4)
        assert span is not None
        request.apply(span, accept_first(span, 1))
    assert request.completion is CompletionReason.NFE_LIMIT
    assert len(request.output_tokens) == 0


def test_masks_before_a_decided_token_are_not_part_of_the_answer() -> None:
    request = make_request(4, buffer_size=1, max_tokens=8, max_nfe=2)
    _decide(request, 0, {6: 1})
    _decide(request, 4, {4: 2})
    assert request.completion is CompletionReason.NFE_LIMIT
    assert request.output_tokens.tolist() == [2]


def test_the_length_limit_outranks_the_forward_limit_when_both_are_met() -> None:
    request = make_request(4, buffer_size=1, max_tokens=4, max_nfe=2)
    run(request, 2, counting)
    assert request.completion is CompletionReason.LENGTH_TOKENS


@pytest.mark.parametrize(("run_length", "tokens"), [(1, 1), (2, 4), (3, 5), (4, 10)])
def test_repetition_ends_when_the_answer_ends_in_a_run_of_equal_tokens(run_length: int, tokens: int) -> None:
    answer = [1, 2, 3, 3, 3, 4, 6, 6, 6, 6, 6, 6]
    request = make_request(4, buffer_size=1, max_tokens=12, max_repetition_run=run_length)
    run(request, 1, lambda position: answer[position - 4])
    assert request.output_tokens.tolist() == answer[:tokens]
    assert request.completion is CompletionReason.REPETITION


def test_masks_never_count_as_a_repetition_and_neither_does_the_prompt() -> None:
    """Defect D-4: trailing masks were a run of equal tokens."""
    request = make_request(4, buffer_size=2, max_tokens=8, max_repetition_run=3, first_token=7)
    _decide(request, 0, {7: 5})
    _decide(request, 4, {6: 5})
    _decide(request, 4, {4: 5})
    assert request.completion is None
    _decide(request, 4, {5: 5})
    assert request.completion is CompletionReason.REPETITION
    assert request.output_tokens.tolist() == [5, 5, 5, 5]


def test_a_run_that_began_in_the_prompt_does_not_count() -> None:
    request = make_request(1, buffer_size=1, max_tokens=3, max_repetition_run=2, first_token=7)
    _decide(request, 0, {1: 7})
    assert request.completion is None
    _decide(request, 0, {2: 7})
    assert request.completion is CompletionReason.REPETITION


@pytest.mark.parametrize("at", [4, 5, 7, 8, 14])
@pytest.mark.parametrize("buffer_size", [1, 3])
def test_an_eos_ends_the_answer_before_it(at: int, buffer_size: int) -> None:
    request = make_request(4, buffer_size=buffer_size, max_tokens=30)
    run(request, 2, lambda position: EOS if position >= at else counting(position))
    assert request.completion is CompletionReason.STOP_EOS
    assert request.output_tokens.tolist() == [counting(position) for position in range(4, at)]


def test_an_eos_in_the_prompt_ends_nothing() -> None:
    request = make_request(4, buffer_size=1, max_tokens=4, first_token=EOS - 1)
    run(request, 4, counting)
    assert request.completion is CompletionReason.LENGTH_TOKENS


def test_every_eos_id_ends_an_answer() -> None:
    for token in (96, 97):
        request = make_request(4, max_tokens=8, eos=(96, 97))
        run(request, 1, lambda position, token=token: token if position == 6 else 7)  # type: ignore[misc]
        assert request.completion is CompletionReason.STOP_EOS
        assert request.output_tokens.tolist() == [7, 7]


def test_ignore_eos_goes_on_and_keeps_the_token_in_the_answer() -> None:
    request = make_request(4, max_tokens=8, ignore_eos=True)
    run(request, 1, lambda position: EOS if position == 6 else 7)
    assert request.completion is CompletionReason.LENGTH_TOKENS
    assert request.output_tokens.tolist() == [7, 7, EOS, 7, 7, 7, 7, 7]


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_a_stop_token_ends_an_answer_whatever_ignore_eos_says(ignore_eos: bool) -> None:
    request = make_request(4, max_tokens=8, ignore_eos=ignore_eos, stop_token_ids=(33, 34))
    run(request, 1, lambda position: 34 if position == 6 else 7)
    assert request.completion is CompletionReason.STOP_TOKEN
    assert request.output_tokens.tolist() == [7, 7]


def test_an_eos_id_given_as_stop_token_ends_even_an_answer_that_ignores_eos() -> None:
    request = make_request(4, max_tokens=8, ignore_eos=True, stop_token_ids=(EOS,))
    run(request, 1, lambda position: EOS if position == 6 else 7)
    assert request.completion is CompletionReason.STOP_TOKEN


def test_a_stop_token_at_or_behind_the_limit_does_not_end_the_answer_as_one() -> None:
    for at in (6, 7):
        request = make_request(4, buffer_size=1, max_tokens=2)
        run(request, 4, lambda position, at=at: EOS if position == at else 7)  # type: ignore[misc]
        assert request.completion is CompletionReason.LENGTH_TOKENS
        assert request.output_tokens.tolist() == [7, 7]


def test_a_stop_token_behind_open_masks_waits_for_them() -> None:
    request = make_request(4, buffer_size=1, max_tokens=8)
    _decide(request, 0, {6: EOS})
    assert request.completion is None
    assert len(request.output_tokens) == 0
    _decide(request, 4, {4: 1})
    _decide(request, 4, {5: 2})
    assert request.completion is CompletionReason.STOP_EOS
    assert request.output_tokens.tolist() == [1, 2]


def test_the_earliest_stop_token_counts_in_whichever_order_they_are_decided() -> None:
    for first, second in (({5: EOS}, {6: EOS}), ({6: EOS}, {5: EOS}), ({5: EOS, 6: EOS}, {7: 1})):
        request = make_request(4, buffer_size=1, max_tokens=8)
        _decide(request, 0, first)
        _decide(request, 4, second)
        _decide(request, 4, {4: 1})
        assert request.completion is CompletionReason.STOP_EOS
        assert request.output_tokens.tolist() == [1]


@pytest.mark.parametrize("reason", [CompletionReason.ABORTED, CompletionReason.STOP_STRING, CompletionReason.ERROR])
def test_an_answer_ended_from_outside_holds_nothing_from_a_stop_token_on(reason: CompletionReason) -> None:
    request = make_request(4, buffer_size=1, max_tokens=8)
    _decide(request, 0, {4: 1, 6: EOS})
    request.finish(reason)
    assert request.output_tokens.tolist() == [1]
    assert request.completion is reason


FAST_THEN_SLOW: Callable[[int], int] = lambda nfe: 4 if nfe < 8 else 1  # noqa: E731


@pytest.mark.parametrize("floor", [0.5, 1.0])
def test_an_automatic_cap_never_cuts_a_slow_tail_behind_a_fast_start(floor: float) -> None:
    """Defect D-5: 64 tokens, four a forward while it warms up and one a forward from then on."""
    request = make_request(4, buffer_size=1, max_tokens=64, auto_nfe=AutoNFE(warmup_steps=8, tpf_floor=floor))
    _run_at_pace(request, FAST_THEN_SLOW)
    assert request.completion is CompletionReason.LENGTH_TOKENS
    assert len(request.output_tokens) == 64


def test_an_automatic_cap_ends_what_stays_below_the_floor_after_the_warm_up() -> None:
    request = make_request(4, buffer_size=1, max_tokens=64, auto_nfe=AutoNFE(warmup_steps=8, tpf_floor=2.0))
    _run_at_pace(request, lambda nfe: 1)
    assert request.completion is CompletionReason.NFE_LIMIT
    assert request.nfe == 32
    warming = make_request(4, buffer_size=1, max_tokens=8, auto_nfe=AutoNFE(warmup_steps=8, tpf_floor=4.0))
    _run_at_pace(warming, lambda nfe: 1)
    assert warming.completion is CompletionReason.LENGTH_TOKENS


def test_an_automatic_cap_acts_on_the_first_forward_after_the_warm_up() -> None:
    request = make_request(4, buffer_size=1, max_tokens=16, auto_nfe=AutoNFE(warmup_steps=4, tpf_floor=8.0))
    _run_at_pace(request, lambda nfe: 1)
    assert (request.completion, request.nfe) == (CompletionReason.NFE_LIMIT, 4)


def test_an_automatic_cap_counts_no_pieces_of_the_prompt() -> None:
    request = make_request(40, max_tokens=4, auto_nfe=AutoNFE(warmup_steps=1, tpf_floor=1.0))
    for stored in range(0, 36, 4):
        span = request.plan(stored, 4)
        assert span is not None
        request.apply(span, accept_first(span, 1))
    run(request, 1, counting)
    assert request.completion is CompletionReason.LENGTH_TOKENS
    assert len(request.output_tokens) == 4


def test_an_explicit_forward_limit_replaces_the_automatic_one() -> None:
    request = make_request(4, buffer_size=1, max_tokens=64, max_nfe=40, auto_nfe=AutoNFE(warmup_steps=2, tpf_floor=8.0))
    _run_at_pace(request, lambda nfe: 1)
    assert (request.completion, request.nfe) == (CompletionReason.NFE_LIMIT, 40)


def test_without_a_cap_a_request_may_take_a_forward_for_each_token() -> None:
    request = make_request(4, buffer_size=1, max_tokens=40)
    assert len(_run_at_pace(request, lambda nfe: 1)) == 40


@given(st.integers(1, 12), st.integers(1, 16), st.integers(1, 16), st.integers(1, 3), st.integers(1, 3))
@settings(deadline=None)
def test_with_a_scripted_model_a_smaller_limit_gives_a_prefix(
    prompt_len: int, few: int, more: int, buffer_size: int, per_step: int
) -> None:
    thresholds = DecodingThresholds(semi_complete_threshold=0.5)
    answers = []
    for max_tokens in (few, few + more):
        request = make_request(prompt_len, buffer_size=buffer_size, max_tokens=max_tokens, thresholds=thresholds)
        run(request, per_step, lambda position: EOS if position == 17 else counting(position))
        answers.append(request.output_tokens.tolist())
    assert answers[0] == answers[1][: len(answers[0])]
    assert len(answers[0]) == min(few, len(answers[1]))


def _decide(request: BlockRequest, stored: int, taken: dict[int, int]) -> None:
    span = request.plan(stored, None)
    assert span is not None
    given_tokens = accept_first(span, 0, lambda position: taken.get(position, 0))
    given_tokens.accepted[:] = [int(position) in taken for position in given_tokens.positions]
    assert given_tokens.accepted.sum() == len(taken)
    request.apply(span, given_tokens)


def _run_at_pace(request: BlockRequest, pace: Callable[[int], int]) -> list[int]:
    """Run to the end, `pace(nfe)` tokens a forward; returns the rows of each."""
    stored, rows = 0, []
    while request.completion is None:
        span = request.plan(stored, None)
        assert span is not None
        rows.append(len(span.tokens))
        request.apply(span, accept_first(span, pace(request.nfe), counting))
        stored = span.store_until
    return rows
