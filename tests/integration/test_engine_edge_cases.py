"""Odd but legal uses of an engine, and bad input through its doors."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch

from diffulex_core.cli.app import main
from diffulex_core.engine import Diffulex
from diffulex_core.errors import ConfigError, DiffulexError, InvalidPrompt, InvalidSamplingParams
from diffulex_core.generation import StreamEvent
from diffulex_core.outputs import GenerationOutputs, ReqTrajectory
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.types import CompletionReason, StepOutput, StepPlan
from tests.integration.engines import CHECKPOINT, MASK, engine, prompt


def greedy(max_tokens: int = 12, **others: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0.0, "max_tokens": max_tokens, "ignore_eos": True, **others})


@pytest.fixture(scope="module")
def ready() -> Iterator[Diffulex]:
    with engine() as made:
        yield made


def answer(outputs: GenerationOutputs) -> tuple[int, ...]:
    [output] = outputs
    return output.token_ids


# Several users of one engine


def test_a_generation_inside_a_stream_of_the_same_engine_disturbs_neither(ready: Diffulex) -> None:
    outer, inner = answer(ready.generate(prompt(9), greedy())), answer(ready.generate(prompt(5), greedy(60)))
    with ready.stream(prompt(9), greedy()) as generation:
        events = iter(generation)
        next(events)
        assert answer(ready.generate(prompt(5), greedy(60))) == inner
        *_, last = events
    assert last.trajectory is not None
    assert last.trajectory.token_ids == answer(generation.outputs) == outer


def test_a_request_that_ends_while_generate_runs_is_reported_by_the_next_step(ready: Diffulex) -> None:
    by_hand = ready.add_request(prompt(9), greedy())
    ready.generate(prompt(5), greedy(60))
    assert ready.is_finished()
    [record] = ready.step().finished
    assert record.req_id == by_hand
    assert record.completion_reason is CompletionReason.LENGTH_TOKENS
    assert ready.step().finished == ()


def test_a_stream_goes_on_when_somebody_else_steps_the_engine(ready: Diffulex) -> None:
    with ready.stream(prompt(9), greedy()) as generation:
        while not ready.is_finished():
            assert ready.step().finished == ()
        [event] = generation
    assert event.trajectory == generation.outputs[0]
    assert (event.canvas.tokens[:12] == event.trajectory.token_ids).all()


def test_a_record_can_be_delivered_to_a_function(ready: Diffulex) -> None:
    records: list[ReqTrajectory] = []
    added = ready.add_request(prompt(9), greedy(), deliver=records.append)
    ready.step()
    assert ready.abort_request(added)
    assert [record.completion_reason for record in records] == [CompletionReason.ABORTED]
    assert ready.step().finished == ()


# Ends of streams


def last_events(events: list[StreamEvent]) -> dict[int, str]:
    return {event.index: event.trajectory.completion_reason.value for event in events if event.trajectory is not None}


def test_every_streamed_prompt_has_one_last_event_also_when_refused_or_aborted(ready: Diffulex) -> None:
    events = []
    with ready.stream([prompt(9), "", prompt(17)], greedy()) as generation:
        for event in generation:
            events.append(event)
            if event.index == 0 and event.trajectory is None:
                ready.abort_request(min(generation._index_of))
    assert last_events(events) == {0: "aborted", 1: "error", 2: "length_tokens"}
    assert sum(event.trajectory is not None for event in events) == 3


def test_a_stream_that_was_left_has_its_aborted_records_and_leaves_none_behind(ready: Diffulex) -> None:
    with ready.stream([prompt(9), prompt(17)], greedy()) as generation:
        next(iter(generation))
    generation.close()
    assert [output.completion_reason for output in generation.outputs] == [CompletionReason.ABORTED] * 2
    assert ready.step().finished == ()


def test_closing_the_engine_inside_a_stream_ends_it() -> None:
    made = engine()
    with made, made.stream(prompt(9), greedy()) as generation:
        next(iter(generation))
        made.close()
        generation.close()
    assert generation.outputs[0].completion_reason is CompletionReason.ABORTED


def test_the_total_time_ends_with_the_last_answer(ready: Diffulex) -> None:
    with ready.stream(prompt(9), greedy()) as generation:
        list(generation)
    before = generation.outputs
    time.sleep(0.02)
    assert generation.outputs == before
    assert before.total_time >= before[0].e2e_time


# Things that break in the middle


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_a_forward_that_fails_changes_nothing_and_can_be_repeated(error: BaseException) -> None:
    with engine() as made:
        expected = made.generate([prompt(9), prompt(17)], greedy())
        runner, calls = made._open.runner, 0
        execute = runner.execute

        def fragile(plan: StepPlan) -> StepOutput:
            nonlocal calls
            calls += 1
            if calls == 3:
                raise error
            return execute(plan)

        runner.execute = fragile  # type: ignore[method-assign]
        records: list[ReqTrajectory] = []
        for each in (prompt(9), prompt(17)):
            made.add_request(each, greedy(), deliver=records.append)
        made.step()
        made.step()
        with pytest.raises(type(error)):
            made.step()
        made._open.scheduler.check_integrity()
        while not made.is_finished():
            made.step()
        assert {record.token_ids for record in records} == {output.token_ids for output in expected}

        calls = 0
        with pytest.raises(type(error)):
            made.generate([prompt(9), prompt(17)], greedy())
        assert made.is_finished()
        assert made.step().finished == ()
        made._open.scheduler.check_integrity()


def test_an_interrupt_while_prompts_are_queued_leaves_none_behind(
    ready: Diffulex, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(text: str) -> list[int]:
        raise KeyboardInterrupt

    monkeypatch.setattr(ready.tokenizer, "encode", interrupt)
    with pytest.raises(KeyboardInterrupt):
        ready.generate([prompt(9), "hello"], greedy())
    assert ready.is_finished()


def test_an_observer_that_raises_costs_nobody_a_record(ready: Diffulex) -> None:
    class Loud:
        def on_request_added(self, request_id: int) -> None: ...
        def on_request_finished(self, request_id: int, reason: CompletionReason) -> None: ...
        def close(self) -> None: ...
        def on_step(self, plan: StepPlan, output: StepOutput, seconds: float) -> None:
            raise OSError("disk full")

    quiet = ready._open
    ready._parts = attrs.evolve(quiet, observer=Loud())
    added = ready.add_request(prompt(9), greedy(1))
    with pytest.raises(OSError, match="disk full"):
        ready.step()
    ready._parts = quiet
    assert [record.req_id for record in ready.step().finished] == [added]


# Bad input


@pytest.mark.parametrize("bad", [None, 5, {"a": 1}, b"abc", iter(["a"]), np.array(5), torch.tensor([3, 4])])
def test_prompts_of_another_kind_are_refused(ready: Diffulex, bad: Any) -> None:
    with pytest.raises(InvalidPrompt, match="give a text, a list of token ids"):
        ready.generate(bad, greedy())


@pytest.mark.parametrize("bad", [None, 5, b"abc", iter([3, 4]), "\ud800", np.array([1.0, 2.0]), [[3], [4]]])
def test_a_prompt_of_another_kind_fails_alone(ready: Diffulex, bad: Any) -> None:
    good, failed = ready.generate([prompt(9), bad], greedy())
    assert (good.error, len(good.token_ids)) == (None, 12)
    assert (failed.error or "").startswith("InvalidPrompt")
    assert ready.is_finished()


@pytest.mark.parametrize("kind", [tuple, np.array, lambda ids: np.array(ids, dtype=np.int16)])
def test_any_sequence_of_whole_numbers_is_a_prompt(ready: Diffulex, kind: Any) -> None:
    assert answer(ready.generate(kind(prompt(9)), greedy())) == answer(ready.generate(prompt(9), greedy()))


@pytest.mark.parametrize("bad", [{}, "greedy", [greedy(), None], [greedy(), {}]])
def test_sampling_parameters_of_another_kind_are_refused_before_anything_starts(ready: Diffulex, bad: Any) -> None:
    with pytest.raises(InvalidSamplingParams, match="neither SamplingParams nor a list"):
        ready.generate([prompt(9), prompt(5)], bad)
    assert ready.is_finished()


@pytest.mark.parametrize("field", ["stop_token_ids", "logit_bias"])
def test_tokens_that_do_not_exist_are_refused(ready: Diffulex, field: str) -> None:
    with pytest.raises(InvalidSamplingParams, match=f"{field} holds token id 288"):
        ready.add_request(prompt(9), greedy(**{field: {288: 1.0}}))


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": 1e-40},
        {"temperature": 1e39},
        {"temperature": 10**400},
        {"logit_bias": {5: float("inf")}},
        {"logit_bias": {5: 1e39}},
        {"logit_bias": [5]},
        {"stop": 5},
        {"thresholds": 0.5},
        {"thresholds": {"accept_threshold": None}},
        {"ignore_eos": "no"},
        {"skip_special_tokens": None},
    ],
    ids=str,
)
def test_parameters_out_of_range_or_of_another_kind_are_named(bad: dict[str, Any]) -> None:
    with pytest.raises(InvalidSamplingParams, match=next(iter(bad)).removesuffix("s")):
        SamplingParams(**bad)


def test_numpy_numbers_are_numbers() -> None:
    made = SamplingParams(
        temperature=np.float32(0.5),
        max_tokens=np.int8(100),
        stop_token_ids=np.array([3]),
        logit_bias={np.int64(3): 1.0},
    )
    assert made == SamplingParams(temperature=0.5, max_tokens=100, stop_token_ids=3, logit_bias={3: 1.0})


@pytest.mark.parametrize(
    "odd",
    [
        {"top_k": 10**20, "temperature": 1.0},
        {"top_p": 1e-30, "temperature": 1.0},
        {"min_p": 1.0, "top_k": 1},
        {"temperature": 1e-6},
        {"temperature": 1e6},
        {"seed": 2**80, "temperature": 1.0},
        {"seed": -1, "temperature": 1.0},
        {"logit_bias": {MASK: 1e6}},
        {"logit_bias": {5: -float("inf")}},
        {"confidence": "margin"},
        {"confidence": "neg_entropy"},
    ],
    ids=str,
)
def test_extreme_but_legal_parameters_answer(ready: Diffulex, odd: dict[str, Any]) -> None:
    [output] = ready.generate(prompt(9), greedy(**odd))
    assert output.error is None
    assert len(output.token_ids) == 12
    assert MASK not in output.token_ids


def test_the_smallest_limits_end_an_answer_after_its_first_token_or_forward(ready: Diffulex) -> None:
    params = [greedy(1), greedy(max_repetition_run=1), greedy(max_nfe=1)]
    outputs = ready.generate([prompt(9)] * 3, params)
    assert [output.completion_reason.value for output in outputs] == ["length_tokens", "repetition", "nfe_limit"]
    assert [len(output.token_ids) for output in outputs[:2]] == [1, 1]
    assert outputs[2].nfe == 1


@pytest.mark.parametrize("strategy", ["multi_bd", "d2f"])
@pytest.mark.parametrize(("block_size", "page_size"), [(4, 4), (4, 32), (16, 32), (32, 32)])
@pytest.mark.parametrize("buffer_size", [1, 8])
def test_prompts_at_the_edges_of_blocks_and_of_the_context(
    strategy: str, block_size: int, page_size: int, buffer_size: int
) -> None:
    settings = {"block_size": block_size, "page_size": page_size, "buffer_size": buffer_size, "max_model_len": 97}
    with engine(decoding_strategy=strategy, num_pages=-1, **settings) as made:
        outputs = made.generate([prompt(n) for n in (1, 31, 32, 33, 95, 96)], greedy(40))
        assert [len(output.token_ids) for output in outputs] == [40, 40, 40, 40, 2, 1]
        assert not any(MASK in output.token_ids for output in outputs)
        made._open.scheduler.check_integrity()


def test_a_cache_for_one_request_serves_many_by_preemption() -> None:
    prompts = [prompt(30 + n, n) for n in range(6)]
    with engine(num_pages=6) as small, engine() as roomy:
        outputs = small.generate(prompts, greedy(60))
        expected = roomy.generate(prompts, greedy(60))
    assert [output.token_ids for output in outputs] == [output.token_ids for output in expected]
    assert sum(output.preemptions for output in outputs) > 0


def test_many_short_requests_queue_up() -> None:
    with engine(num_pages=256) as made:
        outputs = made.generate([prompt(3 + n % 20, n) for n in range(600)], greedy(4))
    assert {output.completion_reason for output in outputs} == {CompletionReason.LENGTH_TOKENS}


@pytest.mark.parametrize("settings", [{"dtype": "bfloat16"}, {"dtype": "float16"}, {"kv_cache_dtype": "bfloat16"}])
@pytest.mark.parametrize("backend", ["torch_cpu", "torch_ref"])
def test_reduced_precision_runs_on_the_cpu(settings: dict[str, Any], backend: str) -> None:
    with engine(attn_impl=backend, **settings) as made:
        assert len(answer(made.generate(prompt(17), greedy()))) == 12


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"device": "cuda:99"}, "cuda:99"),
        ({"device_ids": (99,)}, "cuda:99"),
        ({"num_pages": 10**12}, "num_pages"),
        ({"trace_path": str(CHECKPOINT)}, "trace_path"),
        ({"profiler": "torch", "torch_profiler_dir": str(CHECKPOINT / "config.json")}, "torch_profiler_dir"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_what_the_machine_cannot_give_is_named(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        engine(**settings)


def test_counts_of_tokens_tell_decided_committed_and_visible_ones_apart(ready: Diffulex) -> None:
    outputs = ready.generate(prompt(16), greedy(60))
    [output] = outputs
    assert (output.tokens_visible, output.tokens_edited) == (60, 0)
    assert output.tokens_written == 60 + output.tokens_discarded
    assert output.tokens_committed % 8 == 0
    assert 0 < output.tokens_committed <= output.tokens_written
    assert output.arrival <= output.admitted < output.first_token <= output.first_commit <= output.finished  # type: ignore[operator]
    assert outputs.avg_decode_tps == outputs.request_metrics(0)["decode_tps"] > 0
    assert json.loads(json.dumps(output.to_dict()))["token_ids"] == list(output.token_ids)


# The command line


@pytest.mark.parametrize("way", ["--file", "--config"])
def test_files_that_are_not_utf8_are_explained(way: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"caf\xe9: 1\n")
    prompts = [] if way == "--file" else ["x"]
    with pytest.raises(SystemExit) as ended:
        main(["generate", "--model", str(CHECKPOINT), way, str(path), *prompts])
    shown = capsys.readouterr().err
    assert ended.value.code == 2
    assert "UTF-8" in shown
    assert "Traceback" not in shown


def test_a_bad_option_is_refused_before_a_checkpoint_is_looked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["generate", "--model", "./nowhere", "--temperature", "-1", "x"])
    assert "temperature" in capsys.readouterr().err


def test_errors_of_the_engine_are_of_one_tree(ready: Diffulex) -> None:
    with pytest.raises(DiffulexError):
        ready.add_request([], greedy())
