"""Canvases that end early show what the full run shows, and tell what they saved."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner

from diffulex_core.cli.app import build_cli
from diffulex_core.engine import Diffulex
from diffulex_core.outputs import ReqTrajectory
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.types import CompletionReason
from tests.integration.engines import CHECKPOINT, engine, host, prompt

LENGTH = 24
PLANNED: dict[str, list[dict[str, Any]]] = {
    "llada_canvas": [
        {},
        {"steps": 10},
        {"block_length": 5, "steps": 13},
        {"block_length": 7, "steps": 60},
        {"remasking": "random", "steps": 9},
        {"remasking": "random", "block_length": 6, "defer_eos": True},
        {"cfg_scale": 1.0, "block_length": 8, "steps": 12},
    ],
    "dream_canvas": [
        {"alg": "origin", "steps": 10},
        {"alg": "origin", "steps": 40, "skip_empty_steps": False},
        {"alg": "maskgit_plus", "steps": 24},
        {"alg": "maskgit_plus", "steps": 24, "skip_empty_steps": False, "alg_temp": 0.3},
        {"alg": "topk_margin", "steps": 9, "top_p": 0.9},
        {"alg": "entropy", "steps": 100, "cfg_scale": 0.5},
        {"alg": "entropy", "steps": 7, "eps": 0.2, "defer_eos": True},
    ],
}
UNPLANNED: dict[str, dict[str, Any]] = {
    "llada_canvas": {"alg": "confidence_threshold", "block_length": 6, "thresholds": {"accept_threshold": 0.3}},
    "dream_canvas": {"alg": "confidence_threshold", "steps": 40, "thresholds": {"accept_threshold": 0.3}},
}
EACH = pytest.mark.parametrize(
    ("strategy", "checkpoint", "settings"),
    [
        pytest.param(strategy, checkpoint, each, id=f"{checkpoint}-{' '.join(f'{k}={v}' for k, v in each.items())}")
        for strategy, checkpoint in (("llada_canvas", "llada"), ("dream_canvas", "dream"))
        for each in [*PLANNED[strategy], UNPLANNED[strategy]]
    ],
)


@pytest.fixture(scope="module")
def engines() -> Iterator[dict[str, Diffulex]]:
    """One engine for each strategy; its end token is one that its small network likes to write."""
    with (
        engine("llada", decoding_strategy="llada_canvas", eos_token_ids=[32]) as llada,
        engine("dream", decoding_strategy="dream_canvas", eos_token_ids=[32]) as dream,
    ):
        yield {"llada_canvas": llada, "dream_canvas": dream}


def answer(ready: Diffulex, settings: dict[str, Any], salt: int = 0, **more: Any) -> ReqTrajectory:
    given = {"temperature": 0, "seed": salt, "gen_length": LENGTH, "ignore_eos": True, **settings, **more}
    return ready.generate(prompt(9, salt), SamplingParams(**given))[0]


def visible(whole: ReqTrajectory, end: int) -> tuple[int, ...]:
    """What a full canvas shows before its first end token."""
    return whole.token_ids[: whole.token_ids.index(end)] if end in whole.token_ids else whole.token_ids


@EACH
def test_an_early_end_shows_what_the_full_run_shows_and_counts_what_it_left_out(
    engines: dict[str, Diffulex], strategy: str, checkpoint: str, settings: dict[str, Any]
) -> None:
    ready, planned = engines[strategy], settings != UNPLANNED[strategy]
    saved = 0
    for salt in range(1, 3):
        whole = answer(ready, settings, salt)
        assert len(whole.token_ids) == LENGTH
        assert whole.steps_saved == (0 if planned else None)
        for at in (0, 6, 13):
            end = whole.token_ids[at]
            early = answer(ready, settings, salt, stop_token_ids=[end])
            assert early.token_ids == visible(whole, end)
            assert early.completion_reason is CompletionReason.STOP_TOKEN
            assert early.steps_saved == (whole.nfe - early.nfe if planned else None)
            saved += whole.nfe - early.nfe
    assert saved > 0


@pytest.mark.parametrize("strategy", ["llada_canvas", "dream_canvas"])
def test_the_end_of_text_ends_a_canvas_as_any_stop_token_does(engines: dict[str, Diffulex], strategy: str) -> None:
    ready = engines[strategy]
    settings = {**PLANNED[strategy][2], "logit_bias": {32: 12.0}}
    saved = 0
    for salt in range(6):
        whole, early = answer(ready, settings, salt), answer(ready, settings, salt, ignore_eos=False)
        assert early.token_ids == visible(whole, 32)
        assert early.text == ready.tokenizer.decode(visible(whole, 32), skip_special_tokens=True)
        assert early.steps_saved == whole.nfe - early.nfe
        saved += early.steps_saved
    assert saved > 10


def test_a_stop_string_saves_forwards_too_but_an_ending_for_want_of_forwards_does_not(
    engines: dict[str, Diffulex],
) -> None:
    ready = engines["llada_canvas"]
    settings = {"block_length": 4}
    whole = answer(ready, settings)
    stopped = answer(ready, settings, stop=[whole.text[3:5]])
    assert stopped.completion_reason is CompletionReason.STOP_STRING
    assert stopped.steps_saved == whole.nfe - stopped.nfe > 0
    cut = answer(ready, settings, max_nfe=5)
    assert (cut.completion_reason, cut.nfe, cut.steps_saved) == (CompletionReason.NFE_LIMIT, 5, 0)


def test_an_answer_that_is_cut_short_saves_nothing(engines: dict[str, Diffulex]) -> None:
    ready = engines["llada_canvas"]
    begun = ready.add_request(prompt(9), SamplingParams(temperature=0, gen_length=LENGTH, ignore_eos=True))
    for _ in range(3):
        ready.step()
    ready.abort_request(begun)
    [aborted] = ready.step().finished
    assert (aborted.completion_reason, aborted.nfe, aborted.steps_saved) == (CompletionReason.ABORTED, 3, 0)


def test_forwards_that_the_limit_forbids_are_not_saved(engines: dict[str, Diffulex]) -> None:
    ready = engines["llada_canvas"]
    settings = {"block_length": 4}
    end = answer(ready, settings).token_ids[1]
    free, bound = (answer(ready, settings, stop_token_ids=[end], max_nfe=most) for most in (None, 10))
    assert free.nfe == bound.nfe < 10
    assert (free.steps_saved, bound.steps_saved) == (LENGTH - free.nfe, 10 - free.nfe)


@pytest.mark.parametrize(
    ("settings", "planned"),
    [
        ({"alg": "origin"}, True),
        ({"alg": "entropy", "defer_eos": True}, True),
        ({"alg": "origin", "defer_eos": True}, False),
        ({"alg": "confidence_threshold"}, False),
    ],
)
def test_steps_that_depend_on_what_is_proposed_are_not_planned(
    engines: dict[str, Diffulex], settings: dict[str, Any], planned: bool
) -> None:
    assert answer(engines["dream_canvas"], {"steps": 6, **settings}).steps_saved == (0 if planned else None)


def test_strategies_that_plan_nothing_ahead_tell_nothing() -> None:
    with engine() as ready:
        assert ready.generate(prompt(5), SamplingParams(temperature=0, max_tokens=8))[0].steps_saved is None


def test_the_command_line_tells_what_was_saved() -> None:
    given = ["generate", "--model", str(CHECKPOINT), "--set", "num_pages=64", "--temperature", "0", "hello"]
    canvas = [*given, "--set", "decoding_strategy=llada_canvas", "--gen-length", "16"]
    run = CliRunner()
    data = json.loads(run.invoke(build_cli(host()), [*canvas, "--json"]).stdout)
    assert data["metrics"]["steps_saved"] == data["answers"][0]["steps_saved"] == 16 - data["answers"][0]["nfe"]
    assert "planned forwards saved" in run.invoke(build_cli(host()), canvas).output
    assert "planned forwards saved" not in run.invoke(build_cli(host()), [*given, "--max-tokens", "8"]).output
