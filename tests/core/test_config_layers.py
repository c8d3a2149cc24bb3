"""Who wins: defaults, family, strategy, checkpoint, config file, environment, options; and how each may be written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest

from diffulex_core.config import ConfigFile, EngineConfig, Origin, Text, read_config_file
from diffulex_core.errors import ConfigError, PluginError
from tests.core.config_kit import ALPHA, BLOCKS, PREFIX, configure, make_host, problems_of

LAYERS = ("family", "strategy", "checkpoint", "file", "environment", "user")


def file(values: dict[str, Any]) -> ConfigFile:
    return ConfigFile(name="engine.yaml", values=values)


def layered(upto: str) -> EngineConfig:
    """Every layer up to this one gives another buffer_size: 11 for the family, 12 for the strategy, and so on."""
    given = {layer: 11 + index for index, layer in enumerate(LAYERS[: LAYERS.index(upto) + 1])}
    size = given.get
    return configure(
        {"buffer_size": size("user")},
        host=make_host(
            families=(attrs.evolve(ALPHA, defaults={"buffer_size": size("family")}),),
            strategies=(attrs.evolve(BLOCKS, defaults={"buffer_size": size("strategy")}),),
        ),
        generation_config={"buffer_size": size("checkpoint")},
        config_file=file({"buffer_size": size("file")}),
        environ={"DIFFULEX_DECODING__BUFFER_SIZE": str(size("environment"))} if "environment" in given else {},
    )


@pytest.mark.parametrize(
    ("layer", "detail"),
    [
        ("family", "alpha"),
        ("strategy", "blocks"),
        ("checkpoint", "generation_config.json"),
        ("file", "engine.yaml"),
        ("environment", "DIFFULEX_DECODING__BUFFER_SIZE"),
        ("user", "the caller"),
    ],
)
def test_each_layer_overrides_the_ones_below_and_is_remembered(layer: str, detail: str) -> None:
    config = layered(layer)
    assert config.decoding.buffer_size == 11 + LAYERS.index(layer)
    assert config.origins["buffer_size"] == Origin(source=layer, detail=detail)  # type: ignore[arg-type]


def test_a_key_that_nobody_gives_has_its_default() -> None:
    config = configure()
    assert config.schedule.max_num_reqs == 128
    assert config.origins["max_num_reqs"] == Origin(source="default")


def test_every_key_has_an_origin() -> None:
    config = configure()
    assert config.origins.keys() == config.flat().keys()


LOGICAL = {
    "decoding_strategy": "blocks",
    "block_size": 16,
    "accept_threshold": 0.25,
    "decoding_thresholds": {"edit_threshold": 0.5},
    "max_model_len": 512,
    "eos_token_ids": [3, 5],
    "enable_prefix_caching": False,
    "gpu_memory_utilization": 0.5,
    "dtype": "float32",
    "mask_token_id": 9,
    "profiler_config": {"record_shapes": True},
    "trace_path": "trace.jsonl",
    "heat": 1,
}

YAML_NESTED = """
decoding: {decoding_strategy: blocks, block_size: 16, accept_threshold: 0.25}
schedule: {max_model_len: 512}
model:
  eos_token_ids: [3, 5]
  dtype: float32
  mask_token_id: 9
cache: {enable_prefix_caching: false, gpu_memory_utilization: 0.5}
runtime:
  profiler_config: {record_shapes: true}
  trace_path: trace.jsonl
alpha: {heat: 1}
decoding_thresholds: {edit_threshold: 0.5}
"""

TOML = """
decoding_strategy = "blocks"
trace_path = "trace.jsonl"
[decoding]
block_size = 16
decoding_thresholds = {accept_threshold = 0.25, edit_threshold = 0.5}
[schedule]
max_model_len = 512
[model]
eos_token_ids = [3, 5]
dtype = "float32"
mask_token_id = 9
[cache]
enable_prefix_caching = false
gpu_memory_utilization = 0.5
[profiler_config]
record_shapes = true
[alpha_chat]
heat = 1
"""

ENVIRONMENT = {
    "DIFFULEX_DECODING__DECODING_STRATEGY": "blocks",
    "DIFFULEX_DECODING__BLOCK_SIZE": "16",
    "DIFFULEX_DECODING__ACCEPT_THRESHOLD": "0.25",
    "DIFFULEX_DECODING__DECODING_THRESHOLDS__EDIT_THRESHOLD": "0.5",
    "DIFFULEX_SCHEDULE__MAX_MODEL_LEN": "512",
    "DIFFULEX_MODEL__EOS_TOKEN_IDS": "3,5",
    "DIFFULEX_CACHE__ENABLE_PREFIX_CACHING": "off",
    "DIFFULEX_CACHE__GPU_MEMORY_UTILIZATION": "5e-1",
    "DIFFULEX_MODEL__DTYPE": "float32",
    "DIFFULEX_MODEL__MASK_TOKEN_ID": "9",
    "DIFFULEX_RUNTIME__PROFILER_CONFIG__RECORD_SHAPES": "1",
    "DIFFULEX_RUNTIME__TRACE_PATH": "trace.jsonl",
    "DIFFULEX_ALPHA__HEAT": "1",
    "DIFFULEX_PLUGINS": "core",
    "PATH": "/bin",
}

SETTINGS = {
    "decoding_strategy": "blocks",
    "block_size": "16",
    "accept_threshold": "0.25",
    "decoding_thresholds": '{"edit_threshold": 0.5}',
    "max_model_len": "512",
    "eos_token_ids": "[3, 5]",
    "enable_prefix_caching": "false",
    "gpu_memory_utilization": "0.5",
    "dtype": "float32",
    "mask_token_id": "9",
    "profiler_config.record_shapes": "true",
    "trace_path": "trace.jsonl",
    "alpha_heat": "1.0",
}


@pytest.mark.parametrize("surface", ["yaml", "toml", "json", "environment", "settings", "flat file"])
def test_the_same_configuration_is_the_same_object_on_every_surface(surface: str, tmp_path: Path) -> None:
    expected = configure(LOGICAL)
    path = tmp_path / f"engine.{surface}"
    match surface:
        case "yaml":
            path.write_text(YAML_NESTED)
            config = configure(config_file=read_config_file(path))
        case "toml":
            path.write_text(TOML)
            config = configure(config_file=read_config_file(path))
        case "json":
            path.write_text(json.dumps(LOGICAL))
            config = configure(config_file=read_config_file(path))
        case "flat file":
            config = configure(config_file=file(LOGICAL))
        case "environment":
            config = configure(environ=ENVIRONMENT, strict=True)
        case _:
            config = configure({name: Text(text) for name, text in SETTINGS.items()}, strict=True)
    assert config == expected
    assert hash(config) == hash(expected)
    assert config.warnings == expected.warnings


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("mask_token_id", "null", 7),
        ("profiler_run_id", "none", None),
        ("eos_token_ids", "[]", ()),
        ("eos_token_ids", "4", (4,)),
        ("auto_max_nfe", "YES", True),
        ("skip_warmup", "0", False),
        ("model_name", "alpha", "alpha"),
        ("trace_path", "null", "null"),
    ],
)
def test_text_is_read_as_the_type_of_its_key(name: str, text: str, value: object) -> None:
    config = configure({name: Text(text)})
    assert config.value(config.schema().by_name[name]) == value


@pytest.mark.parametrize(
    ("name", "text", "fix"),
    [
        ("block_size", "big", "give a whole number"),
        ("accept_threshold", "high", "give a number"),
        ("auto_max_nfe", "maybe", "give true or false"),
        ("eos_token_ids", "1,x", "give a list; for each entry, give a whole number"),
        ("dtype", "fp4", "choose one of auto, float32, bfloat16, float16"),
        ("decoding_thresholds", "0.5", "give a table"),
    ],
)
def test_text_that_cannot_be_read_is_refused(name: str, text: str, fix: str) -> None:
    [problem] = problems_of({name: Text(text)})
    assert fix in problem
    assert f"{name} is {text!r} (" in problem


def test_an_overridden_value_is_not_judged() -> None:
    config = configure(
        {"block_size": 16}, generation_config={"block_size": "huge"}, config_file=file({"page_size": 32})
    )
    assert config.decoding.block_size == 16


def test_a_key_in_the_wrong_section_is_sent_to_its_own() -> None:
    [problem] = problems_of(config_file=file({"schedule": {"page_size": 16}}))
    assert "page_size (config file engine.yaml) stands in section schedule, but belongs to section cache" in problem
    [problem] = problems_of(environ={"DIFFULEX_SCHEDULE__PAGE_SIZE": "16"})
    assert "environment variable DIFFULEX_SCHEDULE__PAGE_SIZE" in problem


@pytest.mark.parametrize("section", ["strategy", "pairs"])
def test_keys_of_a_plugin_stand_under_its_name_or_under_what_it_is(section: str) -> None:
    wanted = configure({"decoding_strategy": "pairs", "pair_order": ["left"], "heat": 0.25})
    in_file = {"decoding_strategy": "pairs", section: {"pair_order": ["left"]}, "family": {"heat": 0.25}}
    assert configure(config_file=file(in_file)) == wanted
    in_environment = {f"DIFFULEX_{section.upper()}__PAIR_ORDER": "left", "DIFFULEX_FAMILY__HEAT": "0.25"}
    assert configure({"decoding_strategy": "pairs"}, environ=in_environment) == wanted
    misplaced = {"decoding_strategy": "pairs", "cache": {"pair_order": ["left"]}}
    [problem] = problems_of(config_file=file(misplaced))
    assert "belongs to section strategy; move it there" in problem


SCHEDULE = {"wait": 1, "warmup": 2, "active": 3, "repeat": 4}


def test_a_profilers_schedule_may_be_written_as_torch_has_it() -> None:
    words = ("delay_iterations", "warmup_iterations", "max_iterations", "repeat")
    flat = configure({"profiler_config": dict(zip(words, SCHEDULE.values(), strict=True))})
    variables = {f"DIFFULEX_RUNTIME__PROFILER_CONFIG__SCHEDULE__{word.upper()}": str(n) for word, n in SCHEDULE.items()}
    for table in (
        configure({"profiler_config": {"schedule": SCHEDULE}}),
        configure(config_file=file({"profiler_config": {"schedule": SCHEDULE}})),
        configure(environ=variables),
    ):
        assert table.runtime.profiler_config == flat.runtime.profiler_config


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"schedule": {"skip_first": 2}}, "profiler_config.schedule has wait, warmup, active, repeat."),
        ({"schedule": {"activ": 2}}, "Did you mean profiler_config.schedule.active?"),
        ({"schedule": print}, "Did you mean profiler_config.schedule."),
        ({"schedule": {"wait": -1}}, "profiler_config.delay_iterations is -1"),
        ({"schedule": {"wait": 2}, "delay_iterations": 3}, "under another of its names"),
    ],
)
def test_a_schedule_that_cannot_be_used_is_refused_with_what_can(given: dict[str, object], told: str) -> None:
    [problem] = problems_of({"profiler_config": given})
    assert told in problem


def test_an_unknown_keyword_is_ignored_with_a_warning_that_names_the_closest_key() -> None:
    config = configure({"blok_size": 16})
    assert config == configure()
    [warning] = config.warnings
    assert "blok_size" in warning
    assert "Did you mean block_size?" in warning


def test_an_unknown_keyword_without_a_likeness_points_to_the_list_of_keys() -> None:
    [warning] = configure({"zzzzzz": 16}).warnings
    assert "diffulex config schema" in warning


def test_strict_refuses_what_would_be_ignored() -> None:
    [problem] = problems_of({"blok_size": 16}, strict=True)
    assert "Did you mean block_size?" in problem
    assert not problems_of({"blok_size": 16}, strict=False)


def test_a_config_file_is_always_strict() -> None:
    [flat] = problems_of(config_file=file({"blok_size": 16}))
    [nested] = problems_of(config_file=file({"decoding": {"blok_size": 16}}))
    assert "Did you mean block_size?" in flat
    assert "section decoding has no key blok_size" in nested


def test_a_variable_of_an_unknown_section_warns() -> None:
    [warning] = configure(environ={"DIFFULEX_NOWHERE__BLOCK_SIZE": "16"}).warnings
    assert "DIFFULEX_NOWHERE__BLOCK_SIZE" in warning


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.yaml", "a: [", "cannot be parsed"),
        ("a.toml", "a = ", "cannot be parsed"),
        ("a.json", "{", "cannot be parsed"),
        ("a.ini", "a=1", "name it .yaml, .toml or .json"),
        ("a.yaml", "- a\n- b", "does not hold keys and values"),
        ("a.yaml", "1: 2", "does not hold keys and values"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_its_path(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        read_config_file(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_a_missing_file_is_refused_and_an_empty_one_sets_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config_file(tmp_path / "none.yaml")
    (tmp_path / "empty.yaml").write_text("")
    assert configure(config_file=read_config_file(tmp_path / "empty.yaml")) == configure()


def test_the_model_may_stand_in_the_config_file() -> None:
    assert configure(model=None, config_file=file({"model": "tiny/x"})).model.model == "tiny/x"
    assert configure(model=None, config_file=file({"model": {"model": "tiny/x"}})).model.model == "tiny/x"
    assert configure(model="other", config_file=file({"model": "tiny/x"})).model.model == "other"
    [problem] = problems_of(model=None)
    assert "name a checkpoint" in problem


def test_a_forced_value_replaces_a_default_silently() -> None:
    config = configure({"decoding_strategy": "prefix"})
    assert config.cache.enable_prefix_caching is False
    assert config.origins["enable_prefix_caching"] == Origin(source="strategy", detail="prefix")
    assert not config.warnings


def test_a_forced_value_replaces_a_users_value_with_one_warning() -> None:
    config = configure({"decoding_strategy": "prefix", "enable_prefix_caching": True})
    assert config.cache.enable_prefix_caching is False
    assert config.origins["enable_prefix_caching"] == Origin(source="strategy", detail="prefix")
    [warning] = config.warnings
    assert "enable_prefix_caching is True (given by the caller)" in warning
    assert "'prefix'" in warning


def test_a_user_who_asks_for_the_forced_value_keeps_the_origin() -> None:
    config = configure({"decoding_strategy": "prefix", "enable_prefix_caching": False})
    assert config.origins["enable_prefix_caching"].by_user
    assert not config.warnings


@pytest.mark.parametrize("forces", [{"prefix_cashing": False}, {"enable_prefix_caching": "off"}])
def test_a_strategy_that_forces_nonsense_is_a_plugin_error(forces: dict[str, object]) -> None:
    host = make_host(strategies=(attrs.evolve(PREFIX, forces=forces), BLOCKS))
    with pytest.raises(PluginError, match="'prefix' forces"):
        configure({"decoding_strategy": "prefix"}, host=host)


def test_thresholds_that_the_strategy_does_not_consume_are_named() -> None:
    config = configure({"decoding_strategy": "prefix", "edit_threshold": 0.5, "accept_threshold": 0.5})
    assert config.unused == (
        "add_block_threshold",
        "semi_complete_threshold",
        "edit_threshold",
        "remask_threshold",
        "token_stability_threshold",
    )
    [warning] = config.warnings
    assert "'prefix' does not use edit_threshold;" in warning
    assert config.decoding.decoding_thresholds.edit_threshold == 0.5


def test_every_problem_is_in_one_error() -> None:
    problems = problems_of(
        {"page_size": 7, "accept_threshold": 2, "dtype": "f", "expert_parallel_size": 2, "t_min": 3, "oops": 1},
        strict=True,
        config_file=file({"num_pages": 0}),
        environ={"DIFFULEX_SCHEDULE__MAX_NUM_REQS": "x"},
        generation_config={"temperature": -1},
        host=make_host(validate=lambda config: ["never asked, because the values cannot be read."]),
    )
    names = ("page_size", "accept_threshold", "dtype", "expert_parallel_size", "t_min", "oops", "num_pages")
    for name in (*names, "max_num_reqs", "temperature"):
        assert len([problem for problem in problems if name in problem]) == 1, name
    assert len(problems) == len(names) + 2


def test_plugins_may_object_and_core_problems_are_reported_beside() -> None:
    seen = []

    def validate(config: EngineConfig) -> list[str]:
        seen.append(config.decoding.block_size)
        return ["block_size 16 upsets me; use 8.", "And there is more."]

    problems = problems_of({"block_size": 16, "num_pages": 0}, host=make_host(validate=validate))
    assert problems[1:] == ("block_size 16 upsets me; use 8.", "And there is more.")
    assert "num_pages" in problems[0]
    assert seen == [16]


def test_a_plugin_that_fails_while_it_checks_is_named() -> None:
    def validate(config: EngineConfig) -> list[str]:
        raise ZeroDivisionError("oh")

    with pytest.raises(PluginError, match=r"config_test_plugin.*ZeroDivisionError: oh"):
        configure(host=make_host(validate=validate))


def test_resolution_depends_on_nothing_but_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    before = configure()
    monkeypatch.setenv("DIFFULEX_DECODING__BLOCK_SIZE", "8")
    assert configure() == before
