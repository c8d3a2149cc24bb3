"""What a generation returns: metrics that mean what they say, and values that survive JSON."""

from __future__ import annotations

import json

import attrs
import pytest
from hypothesis import given, settings, strategies as st

from diffulex_core.outputs import BlockTrace, GenerationOutputs, ReqStep, ReqTrajectory, TokenLogprob
from diffulex_core.types import CompletionReason

times = st.floats(0, 1e6)
counts = st.integers(0, 10_000)
token_ids = st.lists(st.integers(0, 200_000), max_size=5).map(tuple)
steps = st.builds(
    ReqStep,
    step_id=counts,
    step_time=times,
    is_prefill=st.booleans(),
    num_generated_tokens=counts,
    rows=counts,
    catch_up_rows=counts,
    running_token_ids=token_ids,
    block_trace=st.lists(
        st.builds(
            BlockTrace,
            block_id=counts,
            status=st.sampled_from(["active", "to_cache"]),
            num_mask_tokens=counts,
            progress=st.floats(0, 1),
        ),
        max_size=2,
    ).map(tuple),
)
logprobs = st.builds(
    TokenLogprob,
    token_id=counts,
    logprob=st.floats(-1e3, 0),
    top=st.lists(st.tuples(counts, st.floats(-1e3, 0)), max_size=2).map(tuple),
)
trajectories = st.builds(
    ReqTrajectory,
    req_id=counts,
    token_ids=token_ids,
    text=st.text(max_size=8),
    completion_reason=st.sampled_from(list(CompletionReason)),
    error=st.none() | st.text(max_size=8),
    trajectory=st.lists(steps, max_size=3).map(tuple),
    prompt_tokens=counts,
    cached_tokens=counts,
    tokens_written=counts,
    tokens_edited=counts,
    tokens_committed=counts,
    arrival=times,
    admitted=st.none() | times,
    first_token=st.none() | times,
    first_commit=st.none() | times,
    last_token=st.none() | times,
    finished=times,
    preemptions=counts,
    steps_saved=st.none() | counts,
    logprobs=st.none() | st.lists(st.none() | logprobs, max_size=3).map(tuple),
)
outputs = st.builds(
    GenerationOutputs,
    trajectories=st.lists(trajectories, max_size=3).map(tuple),
    batch_step_count=counts,
    total_time=times,
    prefill_tokens=counts,
    prefill_time=times,
    decode_rows=counts,
    decode_time=times,
    head_rows=counts,
)


@given(outputs, st.sampled_from([None, 2]))
@settings(deadline=None)
def test_json_gives_back_an_equal_value(value: GenerationOutputs, indent: int | None) -> None:
    text = value.to_json(indent=indent)
    assert GenerationOutputs.from_json(text) == value
    assert GenerationOutputs.from_dict(value.to_dict()) == value
    assert json.loads(text)["total_time"] == value.total_time


def test_the_builders_of_this_file_cover_every_field() -> None:
    """A field added without a place here would not be part of the round trip."""
    for strategy, kind in (
        (trajectories, ReqTrajectory),
        (outputs, GenerationOutputs),
        (steps, ReqStep),
        (logprobs, TokenLogprob),
    ):
        text = repr(strategy)
        assert all(f"{field.name}=" in text for field in attrs.fields(kind))


@given(outputs)
@settings(deadline=None)
def test_metrics_are_numbers_by_name_for_any_value(value: GenerationOutputs) -> None:
    assert all(isinstance(number, (int, float)) and number == number for number in value.metrics().values())
    for index in range(len(value)):
        assert all(number >= 0 for number in value.request_metrics(index).values() if number == number)


def step(number: int, seconds: float, tokens: int, *, prefill: bool = False) -> ReqStep:
    return ReqStep(
        step_id=number,
        step_time=seconds,
        is_prefill=prefill,
        num_generated_tokens=tokens,
        rows=8,
        catch_up_rows=8 * prefill,
    )


EXAMPLE = GenerationOutputs(
    trajectories=(
        ReqTrajectory(
            req_id=0,
            token_ids=(1, 2, 3, 4, 5, 6),
            text="six",
            completion_reason=CompletionReason.STOP_EOS,
            trajectory=(step(0, 1.0, 0, prefill=True), step(1, 0.5, 4), step(2, 0.5, 0), step(3, 0.5, 5)),
            tokens_written=9,
            arrival=1.0,
            admitted=2.0,
            first_token=3.5,
            last_token=4.5,
            finished=5.0,
            steps_saved=3,
        ),
        ReqTrajectory(
            req_id=1,
            token_ids=(7,),
            text="one",
            completion_reason=CompletionReason.LENGTH_TOKENS,
            trajectory=(step(1, 0.5, 1),),
            tokens_written=1,
            arrival=2.0,
            admitted=3.0,
            first_token=3.5,
            last_token=3.5,
            finished=4.0,
            steps_saved=1,
        ),
        ReqTrajectory(
            req_id=2,
            token_ids=(),
            text="",
            completion_reason=CompletionReason.ERROR,
            error="EmptyPrompt: nothing",
            arrival=2.0,
            finished=2.0,
        ),
    ),
    batch_step_count=4,
    total_time=4.0,
    prefill_tokens=30,
    prefill_time=1.5,
    decode_rows=40,
    decode_time=1.0,
    head_rows=20,
)


def test_forwards_are_split_into_prefill_and_decode() -> None:
    first, second, refused = EXAMPLE
    assert (first.nfe, first.nfe_prefill, first.nfe_decode) == (4, 1, 3)
    assert (second.nfe, second.nfe_prefill, second.nfe_decode) == (1, 0, 1)
    assert (refused.nfe, refused.nfe_prefill, refused.nfe_decode) == (0, 0, 0)


def test_tokens_per_forward_count_visible_tokens_over_decode_forwards() -> None:
    first, second, refused = EXAMPLE
    assert [each.tpf for each in (first, second, refused)] == [6 / 3, 1.0, 0.0]
    assert [each.tpf_total for each in (first, second, refused)] == [6 / 4, 1.0, 0.0]
    assert (first.tokens_visible, first.tokens_discarded) == (6, 3)


def test_times_of_a_request_start_at_its_arrival() -> None:
    first, second, refused = EXAMPLE
    assert [each.ttft for each in (first, second, refused)] == [2.5, 1.5, None]
    assert [each.tpot for each in (first, second, refused)] == [1.0 / 5, None, None]
    assert [each.e2e_time for each in (first, second, refused)] == [4.0, 2.0, 0.0]
    assert [each.queue_time for each in (first, second, refused)] == [1.0, 1.0, None]
    assert first.decode_time == 1.5


def test_totals_and_means_are_those_of_the_example() -> None:
    expected = {
        "requests": 3,
        "total_generated_tokens": 7,
        "total_time": 4.0,
        "throughput": 7 / 4,
        "avg_e2e_tps": (6 / 4 + 1 / 2 + 0) / 3,
        "avg_decode_tps": (6 / 1.5 + 1 / 0.5) / 2,
        "tpf": (2 + 1) / 2,
        "tpf_total": (1.5 + 1) / 2,
        "nfe": 5 / 3,
        "steps_saved": 2.0,
        "ttft": (2.5 + 1.5) / 2,
        "tpot": 0.2,
        "batch_step_count": 4,
        "prefill_tokens": 30,
        "prefill_throughput": 30 / 1.5,
        "decode_tokens": 10,
        "decode_throughput": 10 / 1.0,
        "decode_rows": 40,
        "head_rows": 20,
    }
    assert EXAMPLE.metrics() == pytest.approx(expected)
    assert EXAMPLE.engine_ttft == pytest.approx((1.0 + 0.5 + 0.5) / 2)
    assert EXAMPLE.engine_e2e_time == pytest.approx(3.0)


def test_numbers_of_one_request() -> None:
    assert EXAMPLE.request_metrics(0) == pytest.approx(
        {
            "tokens": 6,
            "nfe": 4,
            "steps_saved": 3,
            "decode_steps": 3,
            "tpf": 2.0,
            "tpf_total": 1.5,
            "e2e_tps": 1.5,
            "decode_tps": 4.0,
        }
    )


def test_nothing_generated_gives_zeros_and_no_division() -> None:
    empty = GenerationOutputs(trajectories=())
    assert set(empty.metrics().values()) == {0}
    assert (len(empty), list(empty), empty.texts) == (0, [], [])


def test_outputs_are_a_sequence_of_trajectories() -> None:
    assert len(EXAMPLE) == 3
    assert EXAMPLE[0] is EXAMPLE.trajectories[0]
    assert EXAMPLE[-1].error == "EmptyPrompt: nothing"
    assert EXAMPLE[:2] == EXAMPLE.trajectories[:2]
    assert [each.req_id for each in EXAMPLE] == [0, 1, 2]
    assert EXAMPLE.texts == ["six", "one", ""]
    with pytest.raises(IndexError):
        EXAMPLE[3]


def test_the_benchmark_format_holds_text_tokens_and_forwards() -> None:
    assert EXAMPLE.to_benchmark_format()[:2] == [
        {"text": "six", "token_ids": [1, 2, 3, 4, 5, 6], "nfe": 4},
        {"text": "one", "token_ids": [7], "nfe": 1},
    ]


@pytest.mark.parametrize("reason", list(CompletionReason))
def test_a_reason_has_the_flag_of_its_name_and_no_other(reason: CompletionReason) -> None:
    each = attrs.evolve(EXAMPLE[0], completion_reason=reason)
    assert (
        each.eos_token_generated,
        each.max_new_tokens_reached,
        each.max_model_len_reached,
        each.max_nfe_reached,
        each.max_repetition_run_reached,
    ) == tuple(
        reason.value == name for name in ("stop_eos", "length_tokens", "length_context", "nfe_limit", "repetition")
    )
    assert each.is_truncated == (reason.value in ("length_tokens", "length_context", "nfe_limit"))
