"""Engines whose steps have static shape: which of them are captured, what is said of it, and with torch.compile."""

from __future__ import annotations

import json
import logging
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from diffulex_core.engine import Diffulex
from diffulex_core.host import Host
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.testing.engines import SHARP, STATIC, Asked, Engines, engines, serve, tokens
from diffulex_core.testing.generate import subjects_for
from diffulex_core.testing.reference import plugin as reference
from diffulex_core.testing.subjects import EngineSubject
from diffulex_core.types import HowRun

HOST = Host.discover(extra=[reference])


def subject(strategy: str, plugin: str) -> EngineSubject:
    """An engine of the strategy."""
    found = (each for each in subjects_for(plugin, HOST) if isinstance(each, EngineSubject))
    return next(each for each in found if each.strategy.strategy.name == strategy)


def ways(engine: Diffulex, asked: list[Asked]) -> list[HowRun]:
    """How the network ran in each step that serves these requests."""
    for each in asked:
        engine.add_request(each.prompt, each.params)
    ran = list[HowRun]()
    while not engine.is_finished():
        output = engine.step().output
        assert output is not None
        ran.append(output.how)
    return ran


def one(made: Engines, **params: Any) -> list[Asked]:
    """A request."""
    given = {"temperature": 0.0, "max_tokens": 12, "ignore_eos": True, "seed": 1, **params}
    return [Asked(prompt=made.prompt(6), params=SamplingParams(**given))]


def test_prompts_run_eagerly_unless_they_may_be_captured_and_decoding_is_replayed() -> None:
    with engines(subject("multi_bd", "multibd")) as made:
        ran = ways(made.open(executor=STATIC), one(made))
        assert ran[0] == "eager"
        assert "eager" not in ran[1:]
        assert {"captured", "replayed"} <= set(ran)
        keys = {"enable_prefill_cudagraph": True, "prefill_cudagraph_max_len": 32}
        assert "eager" not in ways(made.open(executor=STATIC, **keys), one(made))
        for off in ({"enforce_eager": True}, {"enable_full_static_runner": False}):
            assert set(ways(made.open(executor=STATIC, **off), one(made))) == {"eager"}


def test_full_passes_of_a_sparse_canvas_run_eagerly() -> None:
    settings = {"sparse.enabled": True, "sparse.delay_step": 1, "sparse.default_block_len": 4}
    canvas = {"gen_length": 16, "block_length": 4, "steps": 16}
    with engines(subject("llada_canvas", "llada")) as made:
        dense = ways(made.open(executor=STATIC), one(made, **canvas))
        sparse = ways(made.open(executor=STATIC, **settings), one(made, **canvas))
        assert "eager" not in dense
        assert Counter(sparse)["eager"] == 4, "one pass of each block is observed"
        assert "replayed" in sparse


def test_how_steps_ran_is_in_the_trace_and_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "trace.jsonl"
    with engines(subject("multi_bd", "multibd")) as made, caplog.at_level(logging.INFO):
        engine = made.open(executor=STATIC, trace_path=str(path))
        ran = ways(engine, one(made))
        engine.close()
    events = [json.loads(line) for line in path.read_text().splitlines()]
    assert [event["forward"] for event in events if event["event"] == "step"] == ran
    assert f"Steps by how the network ran: {dict(Counter(ran))}." in caplog.messages
    assert sum(message.startswith("Captured a step of ") for message in caplog.messages) == Counter(ran)["captured"]


def test_a_compiled_engine_answers_as_an_eager_one(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = list[str]()

    def traced(network: Any, *, mode: str, dynamic: bool) -> Any:
        compiled.append(mode)
        return torch_compile(network, dynamic=dynamic)

    torch_compile = partial(torch.compile, backend="eager")
    monkeypatch.setattr(torch, "compile", traced)
    with engines(subject("multi_bd", "multibd")) as made:
        asked = one(made)
        expected = tokens(serve(made.open(executor=SHARP), asked))
        engine = made.open(executor=SHARP, enable_cudagraph_torch_compile=True, torch_compile_mode="default")
        assert tokens(serve(engine, asked)) == expected
    assert compiled == ["default"]
