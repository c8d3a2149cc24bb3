"""The engine as a user meets it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from diffulex_core.engine import Diffulex
from diffulex_core.errors import (
    ConfigError,
    EmptyPrompt,
    EngineClosed,
    IncompatibleError,
    InvalidPrompt,
    InvalidSamplingParams,
    PromptTooLong,
    UnknownNameError,
)
from diffulex_core.hookspecs import Register
from diffulex_core.host import Host
from diffulex_core.outputs import GenerationOutputs
from diffulex_core.plugin import Capability, DecodingStrategy, hookimpl
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.types import CompletionReason
from tests.integration.engines import CHECKPOINT, EOS, MASK, engine, prompt

GREEDY = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)


@pytest.fixture(scope="module")
def ready() -> Iterator[Diffulex]:
    with engine() as made:
        yield made


def tokens(outputs: GenerationOutputs) -> list[tuple[int, ...]]:
    return [output.token_ids for output in outputs]


def test_one_text_one_list_of_ids_and_a_mixed_list_are_all_prompts(ready: Diffulex) -> None:
    ids = ready.tokenizer.encode("hello there")
    from_text = ready.generate("hello there", GREEDY)
    assert len(from_text) == 1
    assert tokens(from_text) == tokens(ready.generate(ids, GREEDY))
    assert tokens(ready.generate(["hello there", ids], GREEDY)) == tokens(from_text) * 2
    assert len(ready.generate([], GREEDY)) == 0


def test_each_prompt_may_have_its_own_parameters(ready: Diffulex) -> None:
    lengths = [1, 7, 8, 20]
    params = [SamplingParams(temperature=0.0, max_tokens=n, ignore_eos=True) for n in lengths]
    outputs = ready.generate([prompt(9)] * 4, params)
    assert [len(output.token_ids) for output in outputs] == lengths


def test_a_smaller_limit_yields_a_prefix_of_a_larger_one(ready: Diffulex) -> None:
    params = [SamplingParams(temperature=0.0, max_tokens=n, ignore_eos=True) for n in range(1, 40, 3)]
    outputs = ready.generate([prompt(11)] * len(params), params)
    longest = outputs[-1].token_ids
    assert all(output.token_ids == longest[: len(output.token_ids)] for output in outputs)


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    limits=st.lists(st.integers(1, 40), min_size=6, max_size=6),
    ignore=st.booleans(),
)
def test_an_answer_does_not_depend_on_its_batch_and_never_holds_a_mask(
    ready: Diffulex, lengths: list[int], limits: list[int], ignore: bool
) -> None:
    prompts = [prompt(length, salt) for salt, length in enumerate(lengths)]
    params = [SamplingParams(temperature=0.0, max_tokens=limits[i], ignore_eos=ignore) for i in range(len(prompts))]
    together = ready.generate(prompts, params)
    for output, each, own in zip(together, prompts, params, strict=True):
        assert output.token_ids == ready.generate(each, own)[0].token_ids
        assert MASK not in output.token_ids
        assert ignore or EOS not in output.token_ids
        assert len(output.token_ids) <= own.max_tokens


def test_drawn_tokens_depend_on_the_seed_and_not_on_the_batch(ready: Diffulex) -> None:
    params = [SamplingParams(temperature=1.0, seed=seed, max_tokens=24, ignore_eos=True) for seed in (1, 2, 1)]
    first, second, third = tokens(ready.generate([prompt(9)] * 3, params))
    assert first == third != second
    assert tokens(ready.generate(prompt(9), params[0])) == [first]


def test_requests_without_a_seed_draw_differently(ready: Diffulex) -> None:
    params = SamplingParams(temperature=1.0, max_tokens=24, ignore_eos=True)
    first, second = tokens(ready.generate([prompt(9)] * 2, params))
    assert first != second


@pytest.mark.parametrize(
    ("settings", "others"),
    [
        ({"page_size": 8}, {"page_size": 32}),
        ({"max_num_batched_tokens": 24}, {"max_num_batched_tokens": 4096}),
        ({"attn_impl": "torch_ref"}, {"attn_impl": "torch_cpu"}),
        ({"enable_prefix_caching": True}, {"enable_prefix_caching": False}),
        ({"num_pages": 7}, {"num_pages": 64}),
        ({"max_num_reqs": 1}, {"max_num_reqs": 128}),
    ],
    ids=lambda value: next(iter(value)),
)
def test_tokens_do_not_depend_on_machinery(settings: dict[str, Any], others: dict[str, Any]) -> None:
    prompts = [prompt(length, salt) for salt, length in enumerate((3, 40, 24, 40))]
    prompts[3] = prompts[1]
    with engine(**settings) as one, engine(**others) as other:
        assert tokens(one.generate(prompts, GREEDY)) == tokens(other.generate(prompts, GREEDY))


def test_the_head_runs_only_on_undecided_rows_and_no_row_is_a_dummy(ready: Diffulex) -> None:
    with engine(buffer_size=1, enable_prefix_caching=False) as single:
        outputs = single.generate(prompt(16), GREEDY)
    asked = sum(step.num_generated_tokens for step in outputs[0].trajectory)
    assert outputs.head_rows >= asked
    assert outputs.head_rows < outputs.decode_rows


def test_a_repeated_prompt_is_served_from_the_cache() -> None:
    with engine() as made:
        first = made.generate(prompt(40), GREEDY)
        again = made.generate(prompt(40), GREEDY)
    assert (first[0].cached_tokens, again[0].cached_tokens) == (0, 32)
    assert tokens(first) == tokens(again)
    assert again.prefill_tokens == first.prefill_tokens - 32


def test_generated_pages_are_reused_by_the_next_turn() -> None:
    with engine() as made:
        first = made.generate(prompt(16), SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True))
        turn = prompt(16) + list(first[0].token_ids) + prompt(5, salt=3)
        second = made.generate(turn, GREEDY)
    with engine(enable_prefix_caching=False) as cold:
        assert tokens(cold.generate(turn, GREEDY)) == tokens(second)
    assert second[0].cached_tokens >= 32


def test_a_stream_ends_with_the_record_that_generate_returns(ready: Diffulex) -> None:
    expected = ready.generate(prompt(13), GREEDY)[0]
    with ready.stream([prompt(13)], GREEDY) as generation:
        events = list(generation)
    assert [event.trajectory is None for event in events] == [True] * (len(events) - 1) + [False]
    assert events[-1].trajectory is not None
    assert events[-1].trajectory.token_ids == expected.token_ids
    assert events[-1].text == expected.text
    decided = [int(position) for event in events for position in event.newly_decided]
    assert len(decided) == len(set(decided))
    for earlier, later in pairwise(events):
        fixed = earlier.canvas.tokens[earlier.canvas.decided]
        assert (later.canvas.tokens[: len(earlier.canvas.tokens)][earlier.canvas.decided] == fixed).all()


def test_leaving_a_stream_early_frees_its_pages(ready: Diffulex) -> None:
    with ready.stream(prompt(13), GREEDY) as generation:
        next(iter(generation))
    assert ready.is_finished()


def test_requests_can_be_added_stepped_and_aborted_by_hand(ready: Diffulex) -> None:
    kept = ready.add_request(prompt(9), GREEDY)
    dropped = ready.add_request(prompt(17), GREEDY)
    records = list(ready.step().finished)
    assert ready.abort_request(dropped)
    assert not ready.abort_request(dropped)
    while not ready.is_finished():
        records += ready.step().finished
    assert not ready.abort_request(kept)
    by_id = {record.req_id: record for record in records}
    assert by_id[dropped].completion_reason is CompletionReason.ABORTED
    assert MASK not in by_id[dropped].token_ids
    assert by_id[kept].token_ids == ready.generate(prompt(9), GREEDY)[0].token_ids
    assert ready.step().plan is None


def test_generate_waits_for_its_own_requests_only(ready: Diffulex) -> None:
    slow = ready.add_request(prompt(9, salt=4), SamplingParams(temperature=0.0, max_tokens=200, ignore_eos=True))
    outputs = ready.generate(prompt(9), SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True))
    assert len(outputs) == 1
    assert not ready.is_finished()
    assert ready.abort_request(slow)
    ready.step()


def test_stop_strings_end_the_answer_before_them(ready: Diffulex) -> None:
    plain = ready.generate(prompt(11), GREEDY)[0]
    decode = ready.tokenizer.decode
    stop = next(
        piece
        for piece in (decode([token]) for token in plain.token_ids[4:])
        if piece.isascii() and piece.strip() and piece not in decode(list(plain.token_ids[:4]))
    )
    cut = ready.generate(prompt(11), SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True, stop=stop))[0]
    assert cut.completion_reason is CompletionReason.STOP_STRING
    assert cut.text == plain.text[: plain.text.index(stop)]
    assert cut.token_ids == plain.token_ids[: len(cut.token_ids)]
    assert stop not in decode(list(cut.token_ids))


def test_stop_token_ids_end_the_answer_even_when_eos_is_ignored(ready: Diffulex) -> None:
    plain = ready.generate(prompt(11), GREEDY)[0].token_ids
    stop = plain[6]
    params = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True, stop_token_ids=(stop,))
    cut = ready.generate(prompt(11), params)[0]
    assert cut.completion_reason is CompletionReason.STOP_TOKEN
    assert cut.token_ids == plain[: plain.index(stop)]


def test_the_context_limit_ends_an_answer() -> None:
    with engine(max_model_len=40) as short:
        output = short.generate(prompt(30), SamplingParams(temperature=0.0, max_tokens=100, ignore_eos=True))[0]
    assert output.completion_reason is CompletionReason.LENGTH_CONTEXT
    assert len(output.token_ids) == 10


def test_two_engines_in_one_process_do_not_disturb_each_other() -> None:
    with engine() as one, engine(buffer_size=1) as other:
        alone = [tokens(one.generate(prompt(19), GREEDY)), tokens(other.generate(prompt(19), GREEDY))]
        ids = [one.add_request(prompt(19), GREEDY), other.add_request(prompt(19), GREEDY)]
        found: dict[int, tuple[int, ...]] = {}
        while not (one.is_finished() and other.is_finished()):
            for index, each in enumerate((one, other)):
                for record in each.step().finished:
                    if record.req_id == ids[index]:
                        found[index] = record.token_ids
    assert [[found[0]], [found[1]]] == alone


BAD_PROMPTS: list[tuple[Any, type[Exception], str]] = [
    ("", EmptyPrompt, "no tokens"),
    (prompt(256), PromptTooLong, "max_model_len"),
    ([1, 2, MASK], InvalidPrompt, "mask token"),
    ([1, 288], InvalidPrompt, "outside the vocabulary"),
    ([1, -1], InvalidPrompt, "outside the vocabulary"),
    ([1, 2**70], InvalidPrompt, "outside the vocabulary"),
    ([1, 2.5], InvalidPrompt, "whole token ids"),
    ([1, [2]], InvalidPrompt, "whole token ids"),
]


@pytest.mark.parametrize(("bad", "error", "words"), BAD_PROMPTS, ids=[words for _, _, words in BAD_PROMPTS])
def test_a_bad_prompt_is_refused_before_anything_changes(
    ready: Diffulex, bad: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        ready.add_request(bad, GREEDY)
    assert ready.is_finished()


def test_in_a_list_only_the_bad_prompts_fail(ready: Diffulex) -> None:
    good = prompt(9)
    outputs = ready.generate(["", good, [1, MASK], prompt(300), good], GREEDY)
    failed = [output.completion_reason is CompletionReason.ERROR for output in outputs]
    assert failed == [True, False, True, True, False]
    assert outputs[1].token_ids == outputs[4].token_ids == ready.generate(good, GREEDY)[0].token_ids
    assert "EmptyPrompt" in (outputs[0].error or "")
    assert "mask token" in (outputs[2].error or "")


def test_lists_of_different_lengths_are_refused(ready: Diffulex) -> None:
    with pytest.raises(InvalidSamplingParams, match="2 prompts but 1"):
        ready.generate([prompt(3), prompt(4)], [GREEDY])
    assert ready.is_finished()


def test_a_request_that_can_never_fit_is_refused_with_the_number_it_needs() -> None:
    with engine(num_pages=4) as small, pytest.raises(PromptTooLong, match="80 cache slots"):
        small.add_request(prompt(70), SamplingParams(temperature=0.0, max_tokens=10))
    with engine(decoding_strategy="d2f", max_num_batched_tokens=32) as small:
        with pytest.raises(PromptTooLong, match="at least 72"):
            small.add_request(prompt(60), GREEDY)
        assert len(small.generate(prompt(20), GREEDY)[0].token_ids) == 24


def test_weights_that_yield_nan_fail_the_request_and_not_the_engine() -> None:
    with engine(enable_prefix_caching=False) as made:
        network = made._open.runner.network  # type: ignore[attr-defined]
        with torch.no_grad():
            network.embed.weight[77] = torch.nan
        outputs = made.generate([prompt(9), [77, 3, 4]], GREEDY)
        assert outputs[1].completion_reason is CompletionReason.ERROR
        assert "Non-finite logits" in (outputs[1].error or "")
        assert len(outputs[0].token_ids) == 24
        assert made.is_finished()


def test_a_closed_engine_says_so_and_closing_twice_is_fine() -> None:
    made = engine()
    made.close()
    made.exit()
    with pytest.raises(EngineClosed, match="Create a new"):
        made.generate("hello")


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"model_name": "lada"}, UnknownNameError, "Did you mean 'llada'"),
        ({"decoding_strategy": "multi_db"}, UnknownNameError, "Did you mean 'multi_bd'"),
        ({"attn_impl": "torch_gpu"}, UnknownNameError, "torch_cpu"),
        ({"block_size": 64}, ConfigError, "block_size"),
        ({"page_size": 4}, ConfigError, "page_size"),
        ({"tensor_parallel_size": 3}, ConfigError, "tensor_parallel_size 3 does not divide"),
        ({"max_model_len": 100000}, ConfigError, "max_model_len"),
        ({"bufer_size": 2}, ConfigError, "buffer_size"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_bad_settings_are_refused_with_the_fix(settings: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises((error, ConfigError), match=words):
        engine(**settings)


def test_a_strategy_that_does_not_fit_names_what_is_missing() -> None:
    class Reviser:
        """A plugin with a strategy that dense LLaDA cannot serve."""

        @hookimpl
        def diffulex_register_strategies(self, register: Register[DecodingStrategy]) -> None:
            register(
                DecodingStrategy(
                    name="revise", pattern="diffulex_multibd.patterns:block_causal", requires={Capability.EDIT}
                )
            )

    module = ModuleType("reviser")
    module.diffulex_register_strategies = Reviser().diffulex_register_strategies  # type: ignore[attr-defined]
    with pytest.raises(IncompatibleError, match="edit"):
        Diffulex(CHECKPOINT, host=Host.discover(extra=[module]), decoding_strategy="revise")


def test_traces_record_every_step(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    with engine(trace_path=str(path), save_trace=True) as made:
        output = made.generate(prompt(9), GREEDY)[0]
    events = [json.loads(line) for line in path.read_text().splitlines()]
    assert [event["event"] for event in events] == ["added", *["step"] * output.nfe, "finished"]
    written = [token for event in events[1:-1] for window in event["windows"] for token in window["tokens"]]
    assert len(written) == output.tokens_written
    assert all(step.block_trace and len(step.running_token_ids) == step.rows for step in output.trajectory)


def test_a_profile_is_written(tmp_path: Path) -> None:
    with engine(profiler_config={"profiler": "torch", "torch_profiler_dir": str(tmp_path)}) as made:
        made.start_profile("run")
        made.generate(prompt(3), SamplingParams(temperature=0.0, max_tokens=4))
        assert tmp_path / "run.engine.trace.json" in made.stop_profile()
    assert (tmp_path / "run.engine.trace.json").stat().st_size > 0


def test_metrics_agree_with_the_records(ready: Diffulex) -> None:
    outputs = ready.generate([prompt(9), prompt(40, salt=1)], GREEDY)
    assert outputs.total_generated_tokens == 48
    assert outputs.tpf == pytest.approx(np.mean([24 / output.nfe_decode for output in outputs]))
    assert outputs.decode_rows + outputs.prefill_tokens == sum(s.rows for o in outputs for s in o.trajectory)
    assert GenerationOutputs.from_json(outputs.to_json()) == outputs
