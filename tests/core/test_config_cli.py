"""`diffulex config`: what is shown, from where it is read, and how mistakes end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tokenizers import Tokenizer, models

from diffulex_core.cli.app import build_cli
from diffulex_core.cli.config import read_settings
from diffulex_core.config.load import load_config
from diffulex_core.errors import CheckpointError, ConfigError, DiffulexError, UnknownNameError
from tests.core.config_kit import CHECKPOINT, HOST


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint of alpha without weights."""
    path = tmp_path / "ckpt"
    path.mkdir()
    (path / "config.json").write_text(json.dumps({**CHECKPOINT, "mask_token_id": None}))
    (path / "generation_config.json").write_text(json.dumps({"block_size": 8, "temperature": 0.5}))
    vocabulary = {"a": 0, "b": 1, "<mask>": 2, "<end>": 3}
    Tokenizer(models.WordLevel(vocabulary, unk_token="a")).save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"mask_token": "<mask>", "eos_token": "<end>"}))
    return path


def run(*args: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(build_cli(HOST), ["config", *args], env=env, terminal_width=200)


def explained(*args: str, env: dict[str, str] | None = None) -> dict[str, Any]:
    done = run("explain", *args, "--json", env=env)
    assert done.exit_code == 0, done.output
    facts = json.loads(done.output)
    return {**facts, "keys": {row["key"]: row for row in facts["keys"]}}


def test_every_key_is_explained_with_value_default_owner_and_source(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "engine.yaml").write_text("schedule: {max_num_reqs: 9}")
    facts = explained(
        "--model", str(folder), "--config", str(tmp_path / "engine.yaml"), "--set", "heat=0.25",
        env={"DIFFULEX_CACHE__NUM_PAGES": "12"},
    )  # fmt: skip
    keys = facts["keys"]
    assert (facts["model_family"], facts["decoding_strategy"]) == ("alpha", "blocks")
    assert facts["sampling_defaults"] == {"temperature": 0.5}
    assert (keys["block_size"]["value"], keys["block_size"]["default"]) == (8, 32)
    assert {name: keys[name]["set_by"] for name in ("max_num_reqs", "num_pages", "heat", "block_size", "dtype")} == {
        "max_num_reqs": {"source": "file", "detail": str(tmp_path / "engine.yaml")},
        "num_pages": {"source": "environment", "detail": "DIFFULEX_CACHE__NUM_PAGES"},
        "heat": {"source": "user", "detail": "the command line"},
        "block_size": {"source": "checkpoint", "detail": "generation_config.json"},
        "dtype": {"source": "default", "detail": ""},
    }
    assert keys["heat"]["owner"] == "model family 'alpha'"
    assert keys["num_pages"]["section"] == "cache"
    assert (keys["accept_threshold"]["unused"], keys["edit_threshold"]["unused"]) == (False, True)
    assert (keys["block_size"]["built"], keys["kv_cache_layout"]["built"]) == (True, False)


def test_special_tokens_come_from_the_tokenizer(folder: Path) -> None:
    keys = explained("--model", str(folder))["keys"]
    assert (keys["mask_token_id"]["value"], keys["mask_token_id"]["set_by"]["source"]) == (2, "tokenizer")
    assert keys["eos_token_ids"]["value"] == [2, 3]


def test_the_tokenizer_may_lie_elsewhere(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "tokenizer"
    elsewhere.mkdir()
    for path in folder.glob("tokenizer*"):
        shutil.move(path, elsewhere / path.name)
    with pytest.raises(CheckpointError, match="tokenizer"):
        load_config(str(folder), {}, host=HOST)
    (tmp_path / "engine.toml").write_text(f'tokenizer_path = "{elsewhere.as_posix()}"')
    loaded = load_config(str(folder), {}, host=HOST, config_file=tmp_path / "engine.toml")
    assert loaded.config.model.mask_token_id == 2
    assert loaded.folder == folder


def test_the_table_shows_values_sources_unused_thresholds_and_warnings(folder: Path) -> None:
    done = run("explain", "--model", str(folder), "--set", "device_start=1", "--set", "edit_threshold=0.5")
    assert done.exit_code == 0, done.output
    lines = [" ".join(line.split()) for line in done.output.splitlines()]
    assert any(line.startswith("block_size 8 32 checkpoint,") for line in lines)
    assert any(line.startswith("deepep_num_max_dispatch_tokens_per_rank 256 256") for line in lines)
    assert any(line.startswith("Unused by the strategy 'blocks':") and "edit_threshold" in line for line in lines)
    assert any(line.startswith("Warning: device_start") for line in lines)
    assert "Sampling default of the checkpoint: temperature = 0.5" in lines


def test_one_key_is_shown_alone_with_its_meaning_under_any_of_its_names(folder: Path) -> None:
    for name in ("page_size", "page-size", "kvcache_block_size"):
        done = run("explain", "--model", str(folder), name)
        assert "page_size (int): Positions per page; a multiple of block_size. Allowed: 4, 8, 16, 32." in done.output
        assert "block_size " not in done.output.splitlines()[0]
        assert "buffer_size" not in done.output
    assert "Allowed: >= 0, <= 1." in run("explain", "--model", str(folder), "accept_threshold").output
    assert "Allowed: > 0, <= 1." in run("explain", "--model", str(folder), "gpu_memory_utilization").output
    assert "(list of int)" in run("explain", "--model", str(folder), "eos_token_ids").output
    assert "(int or null)" in run("explain", "--model", str(folder), "mask_token_id").output
    done = run("explain", "--model", str(folder), "expert_parallel_size")
    assert "Not built yet: works as 1." in done.output


def test_a_group_is_shown_as_its_keys(folder: Path) -> None:
    keys = explained("--model", str(folder), "decoding_thresholds")["keys"]
    assert len(keys) == 6
    assert "accept_threshold" in keys


def failure(*args: str) -> DiffulexError:
    done = run(*args)
    assert isinstance(done.exception, DiffulexError), done.output
    return done.exception


def test_an_unknown_key_names_the_closest(folder: Path) -> None:
    error = failure("explain", "--model", str(folder), "pagesize")
    assert isinstance(error, UnknownNameError)
    assert "Did you mean 'page_size'?" in str(error)


def test_the_command_line_is_strict(folder: Path) -> None:
    error = failure("explain", "--model", str(folder), "--set", "pagesize=16")
    assert isinstance(error, ConfigError)
    assert "pagesize (given by the command line) is unknown" in str(error)


def test_a_model_is_needed_and_may_stand_in_the_config_file(folder: Path, tmp_path: Path) -> None:
    assert "No model is named" in str(failure("explain"))
    (tmp_path / "engine.yaml").write_text(f"model: {folder}")
    assert explained("--config", str(tmp_path / "engine.yaml"))["model_family"] == "alpha"


def test_a_folder_without_config_json_is_refused(tmp_path: Path) -> None:
    assert isinstance(failure("explain", "--model", str(tmp_path)), CheckpointError)


@pytest.mark.parametrize("setting", ["page_size", "=4", "  =4"])
def test_a_setting_without_key_or_value_is_a_usage_error(setting: str) -> None:
    done = run("explain", "--model", "x", "--set", setting)
    assert done.exit_code == 2
    assert "KEY=VALUE" in done.output


def test_a_directory_is_no_config_file(tmp_path: Path) -> None:
    assert run("explain", "--model", "x", "--config", str(tmp_path)).exit_code == 2


def test_the_last_of_equal_settings_counts_and_a_value_may_hold_an_equals_sign() -> None:
    settings = read_settings(["page-size=8", "page_size=16", "trace_path=a=b"])
    assert {name: text.text for name, text in settings.items()} == {"page_size": "16", "trace_path": "a=b"}


def test_the_schema_describes_every_key_flat_and_nested() -> None:
    schema = json.loads(run("schema").output)
    properties = schema["properties"]
    assert properties["page_size"] == {
        "description": "Positions per page; a multiple of block_size.",
        "default": 32,
        "enum": [4, 8, 16, 32],
    }
    assert properties["cache"]["properties"]["page_size"] == properties["page_size"]
    assert properties["accept_threshold"] == {
        "description": "A masked position is decided when its confidence is strictly greater.",
        "default": 0.9,
        "type": "number",
        "minimum": 0,
        "maximum": 1,
    }
    assert properties["gpu_memory_utilization"]["exclusiveMinimum"] == 0
    assert properties["mask_token_id"]["type"] == ["integer", "null"]
    assert properties["eos_token_ids"]["items"] == {"type": "integer", "minimum": 0}
    assert properties["dtype"]["enum"] == ["auto", "float32", "bfloat16", "float16"]
    assert "use_cuda" in properties["profiler_config"]["properties"]
    schedule = properties["profiler_config"]["properties"]["schedule"]
    assert schedule["properties"].keys() == {"wait", "warmup", "active", "repeat"}
    assert not schedule["additionalProperties"]
    assert [choice["type"] for choice in properties["model"]["anyOf"]] == ["string", "object"]
    assert properties["alpha"]["properties"].keys() == {"heat", "alpha_heat", "rounds"}
    assert "pair_order" in properties
    objects = [schema, properties["cache"], properties["alpha"], properties["decoding_thresholds"]]
    assert [entry["additionalProperties"] for entry in objects] == [False] * 4
