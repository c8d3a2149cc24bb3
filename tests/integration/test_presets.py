"""Presets: what a word stands for, what may be set besides it, and where it can be said."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
from click.testing import CliRunner, Result

from diffulex_core.cli.app import build_cli
from diffulex_core.errors import InvalidSamplingParams, UnknownNameError
from diffulex_core.plugin import DecodingStrategy
from diffulex_core.presets import preset_arguments
from diffulex_core.sampling_params import SamplingParams
from tests.integration.engines import CHECKPOINT, engine, host, prompt

DOCS = Path(__file__).parents[2] / "docs" / "strategies"
STRATEGIES = ("llada_canvas", "dream_canvas")
EACH_PRESET = pytest.mark.parametrize(
    ("strategy", "name"),
    [(strategy.name, name) for strategy in host().strategies for name in strategy.presets],
)


def strategy(presets: Mapping[str, Mapping[str, object]]) -> DecodingStrategy:
    return DecodingStrategy(name="toy", pattern="toy:pattern", presets=presets)


def generate(*arguments: str) -> Result:
    settings = ("--set", "decoding_strategy=llada_canvas", "--set", "num_pages=64", "--json")
    return CliRunner().invoke(build_cli(host()), ["generate", "--model", str(CHECKPOINT), *settings, *arguments])


@EACH_PRESET
def test_every_preset_is_served_by_its_strategy(strategy: str, name: str) -> None:
    checkpoint = "dream" if strategy.startswith("dream") else "llada"
    with engine(checkpoint, decoding_strategy=strategy) as ready:
        params = ready.preset(name, ignore_eos=True, max_tokens=16)
        [answer] = ready.generate(prompt(5), params)
    assert len(answer.token_ids) == 16
    wanted = SamplingParams(**dict(host().strategies.get(strategy).presets[name]))
    lengths = {"gen_length": params.gen_length, "steps": params.steps, "ignore_eos": True, "max_tokens": 16}
    assert params == attrs.evolve(wanted, **lengths)


def test_the_preset_for_memory_feeds_fewer_rows() -> None:
    with engine(decoding_strategy="llada_canvas", block_length=4) as ready:
        dense, sparse = (
            ready.generate(prompt(20), params)[0]
            for params in (SamplingParams(gen_length=16), ready.preset("memory", gen_length=16))
        )
    assert sum(step.rows for step in sparse.trajectory) < 0.8 * sum(step.rows for step in dense.trajectory)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_presets_travel_to_other_processes(strategy: str) -> None:
    with engine(decoding_strategy=strategy) as ready:
        copy = pickle.loads(pickle.dumps(ready.config))
    assert copy.strategy.presets == host().strategies.get(strategy).presets


def test_presets_decode_differently_and_repeatably() -> None:
    with engine(decoding_strategy="llada_canvas") as ready:
        answers = {
            name: ready.generate(prompt(9), ready.preset(name, max_tokens=24, seed=3, ignore_eos=True))[0].token_ids
            for name in host().strategies.get("llada_canvas").presets
        }
        again = ready.generate(prompt(9), ready.preset("creative", max_tokens=24, seed=3, ignore_eos=True))[0]
    assert len(set(answers.values())) == 4
    assert again.token_ids == answers["creative"]


@pytest.mark.parametrize(
    ("given", "length", "steps"),
    [
        ({}, 64, 64),
        ({"gen_length": 8}, 8, 8),
        ({"max_tokens": 8}, 8, 8),
        ({"max_tokens": 8, "gen_length": 16}, 16, 16),
        ({"gen_length": 8, "steps": 4}, 8, 4),
        ({"steps": 4}, 64, 4),
        ({"gen_length": None}, None, None),
    ],
)
def test_steps_follow_the_length_unless_they_are_given(given: dict[str, Any], length: int, steps: int) -> None:
    even = strategy({"even": {"gen_length": 64, "steps": 64}, "uneven": {"gen_length": 64, "steps": 32}})
    found = preset_arguments(even, "even", given)
    assert (found["gen_length"], found["steps"]) == (length, steps)
    assert preset_arguments(even, "uneven", given)["steps"] == given.get("steps", 32)


def test_whatever_is_set_besides_a_preset_counts_and_the_rest_is_the_checkpoints() -> None:
    with engine(decoding_strategy="llada_canvas") as ready:
        params = ready.preset("creative", temperature=0.1, top_p=0.5)
        assert (params.temperature, params.top_p, params.remasking) == (0.1, 0.5, "random")
        with pytest.raises(InvalidSamplingParams, match="top_p is 2"):
            ready.preset("creative", top_p=2)


def test_a_preset_without_a_length_leaves_it_to_max_tokens() -> None:
    found = preset_arguments(strategy({"calm": {"temperature": 0}}), "calm", {"max_tokens": 9})
    assert SamplingParams(**found) == SamplingParams(temperature=0, max_tokens=9)


def test_an_unknown_preset_names_those_there_are() -> None:
    near = r"'factul' of the strategy 'llada_canvas'.*factual.*Did you mean"
    with engine(decoding_strategy="llada_canvas") as ready, pytest.raises(UnknownNameError, match=near):
        ready.preset("factul")
    elsewhere = r"'multi_bd'\. It has none.*that have it \(dream_canvas, llada_canvas\)"
    with engine() as ready, pytest.raises(UnknownNameError, match=elsewhere):
        ready.preset("factual")
    with engine() as ready, pytest.raises(UnknownNameError, match=r"choose another strategy"):
        ready.preset("factul")


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"warmth": 1}, "'odd' sets warmth, which no request has"), ({"temperature": -1}, "temperature is -1")],
)
def test_a_preset_that_no_request_could_use_is_refused_when_it_is_registered(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises((ValueError, InvalidSamplingParams), match=message):
        strategy({"odd": settings})


def test_the_command_line_knows_presets_and_its_other_options_come_first() -> None:
    plain = json.loads(generate("--preset", "factual", "--ignore-eos", "hello").stdout)["answers"][0]
    assert (len(plain["token_ids"]), plain["nfe"]) == (64, 64)
    short = json.loads(generate("--preset", "factual", "--ignore-eos", "--max-tokens", "8", "hello").stdout)
    assert (len(short["answers"][0]["token_ids"]), short["answers"][0]["nfe"]) == (8, 8)
    few = json.loads(generate("--preset", "factual", "--ignore-eos", "--set", "steps=16", "hello").stdout)
    assert (len(few["answers"][0]["token_ids"]), few["answers"][0]["nfe"]) == (64, 16)
    own = generate("--ignore-eos", "--gen-length", "12", "--steps", "6", "--block-length", "4", "--cfg-scale", "1", "a")
    assert (len(json.loads(own.stdout)["answers"][0]["token_ids"]), json.loads(own.stdout)["answers"][0]["nfe"]) == (
        12,
        6,
    )


def test_a_preset_that_nobody_has_is_a_mistake_before_anything_is_loaded() -> None:
    result = generate("--preset", "factul", "--model", "no/such/checkpoint", "hello")
    assert result.exit_code == 2
    assert "There is creative, factual" in result.output
    assert "Did you mean 'factual'?" in result.output


def answered(*arguments: str, **variables: str) -> tuple[int, int, int]:
    """Tokens, forwards and rows of an answer on the command line."""
    settings = ("--model", str(CHECKPOINT), "--set", "num_pages=64", "--ignore-eos", "--json", "hello")
    result = CliRunner().invoke(build_cli(host()), ["generate", *arguments, *settings], env=variables)
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    [answer] = data["answers"]
    return len(answer["token_ids"]), answer["nfe"], data["metrics"]["decode_rows"]


def test_keys_that_are_given_come_before_a_preset_wherever_they_are_given(tmp_path: Path) -> None:
    canvas = ("--set", "decoding_strategy=llada_canvas")
    wanted = answered(*canvas, "--gen-length", "12", "--steps", "6")
    assert wanted[:2] == (12, 6)
    file = tmp_path / "engine.yaml"
    file.write_text("decoding_strategy: llada_canvas\ngen_length: 12\nstrategy:\n  steps: 6\n")
    assert answered("--config", str(file), "--preset", "factual") == wanted
    variables = {"DIFFULEX_STRATEGY__GEN_LENGTH": "12", "DIFFULEX_LLADA_CANVAS__STEPS": "6"}
    assert answered(*canvas, "--preset", "factual", **variables) == wanted
    assert answered(*canvas, "--preset", "factual", "--gen-length", "8", **variables)[:2] == (8, 6)


def test_what_is_given_of_the_sparse_cache_comes_before_a_presets() -> None:
    canvas = ("--set", "decoding_strategy=llada_canvas", "--max-tokens", "12", "--set", "block_length=4")
    dense, memory = answered(*canvas), answered(*canvas, "--preset", "memory")
    assert memory[2] < dense[2]
    assert answered(*canvas, "--preset", "memory", "--set", "sparse.enabled=false") == dense
    late = answered(*canvas, "--preset", "memory", "--set", "sparse.delay_step=2")
    assert memory[2] < late[2] < dense[2]


def test_presets_are_shown_with_their_strategy() -> None:
    result = CliRunner().invoke(build_cli(host()), ["plugins", "show", "llada_canvas"], terminal_width=200)
    assert re.search(r"preset factual .*temperature=0.0, gen_length=64", result.output)
    assert re.search(r"preset memory .*sparse.enabled=yes, sparse.retention_ratio=0.4", result.output)


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_pages_of_the_strategies_list_their_presets(name: str) -> None:
    page = (DOCS / f"{name}.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (`[\w.]+=.*) \|$", page, re.MULTILINE))
    assert rows == {
        preset: ", ".join(f"`{setting}={value}`" for setting, value in flat(settings).items())
        for preset, settings in host().strategies.get(name).presets.items()
    }


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a group under their full names."""
    return {
        name + inner: value
        for name, given in settings.items()
        for inner, value in ({f".{k}": v for k, v in given.items()} if isinstance(given, dict) else {"": given}).items()
    }
