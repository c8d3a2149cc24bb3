"""Loading through an engine: formats, checks, and errors that name file, tensor, parameter and plugin."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffulex_core.engine import Diffulex
from diffulex_core.errors import CheckpointError, ConfigError
from diffulex_core.sampling_params import SamplingParams
from tests.core.checkpoints import write_weights
from tests.integration.engines import PARITY, SETTINGS, host, prompt

SDAR = {**SETTINGS, "block_size": 4}


def copy_of(checkpoint: str, folder: Path, *, weights: bool = True) -> Path:
    """The checkpoint in another folder, as one file or without weights."""
    shutil.copytree(PARITY / "checkpoints" / checkpoint, folder, dirs_exist_ok=True)
    if not weights:
        (folder / "model.safetensors").unlink()
    return folder


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(folder / "model.safetensors"))


def answers(folder: Path, **settings: object) -> list[list[int]]:
    with Diffulex(folder, host=host(), strict=True, **{**SDAR, **settings}) as engine:
        params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
        return [list(answer.token_ids) for answer in engine.generate([prompt(9), prompt(14, 1)], params)]


def test_dummy_weights_need_no_files_and_answer_the_same_each_time(tmp_path: Path) -> None:
    folder = copy_of("sdar", tmp_path, weights=False)
    first = answers(folder, load_format="dummy")
    assert [len(tokens) for tokens in first] == [12, 12]
    assert answers(folder, load_format="dummy") == first
    for load_format in ("auto", "safetensors"):
        with pytest.raises(CheckpointError, match=r"There are no weights: looked for model\.safetensors\.index\.json"):
            answers(folder, load_format=load_format)


def test_files_may_be_called_anything_that_the_index_names_and_hold_any_float_dtype(tmp_path: Path) -> None:
    folder = copy_of("sdar", tmp_path)
    expected, stored = answers(folder), tensors_of(folder)
    (folder / "model.safetensors").unlink()
    write_weights(folder, stored, 3)
    index = folder / "model.safetensors.index.json"
    text = index.read_text()
    for number in range(1, 4):
        name = f"model-{number:05d}-of-00003.safetensors"
        (folder / name).rename(folder / f"layer-{3 - number}-ep-0-of-1.safetensors")
        text = text.replace(name, f"layer-{3 - number}-ep-0-of-1.safetensors")
    index.write_text(text)
    save_file({"model.norm.weight": torch.zeros(3), "stray": torch.ones(1)}, folder / "model.safetensors")
    assert answers(folder, check_weights=True) == expected
    save_file({name: tensor.double() for name, tensor in stored.items()}, folder / "model.safetensors")
    index.unlink()
    assert answers(folder) == expected


def test_a_nan_weight_is_found_on_request_with_file_tensor_parameter_and_plugin(tmp_path: Path) -> None:
    folder = copy_of("sdar", tmp_path)
    stored = tensors_of(folder)
    stored["model.layers.1.self_attn.k_proj.weight"][3, 5] = torch.nan
    save_file(stored, folder / "model.safetensors")
    with pytest.raises(CheckpointError) as raised:
        answers(folder, check_weights=True)
    text = str(raised.value)
    assert re.search(r"into the model family 'sdar' \(diffulex-sdar \d[\w.]*\):", text)
    assert "'model.layers.1.self_attn.k_proj.weight' in model.safetensors" in text
    assert "'layers.1.attn.qkv.weight' (part 'k') 1 NaN" in text


def test_a_corrupt_checkpoint_is_one_error_that_names_everything(tmp_path: Path) -> None:
    folder = copy_of("sdar", tmp_path)
    stored = tensors_of(folder)
    del stored["model.layers.0.self_attn.q_norm.weight"]
    stored["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(64)
    stored["model.norm.weight"] = torch.zeros(65)
    save_file(stored, folder / "model.safetensors")
    with pytest.raises(CheckpointError) as raised:
        answers(folder)
    assert "the model family 'sdar' (diffulex-sdar" in str(raised.value)
    assert len(raised.value.problems) == 3
    missing = "model.layers.0.self_attn.q_norm.weight"
    for words in (
        "'model.norm.weight' in model.safetensors has shape [65], but 'final_norm.weight' has [64].",
        "'model.layers.0.self_attn.q_proj.bias' [64] in model.safetensors has no place in this model.",
        f"Nothing fills 'layers.0.attn.q_norm.weight' [16]: the checkpoint has no '{missing}'.",
    ):
        assert words in raised.value.problems


def test_a_config_that_does_not_suit_the_family_names_the_plugin(tmp_path: Path) -> None:
    folder = copy_of("sdar", tmp_path)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"head_dim": 16', '"head_dim": null'))
    with pytest.raises(ConfigError, match=r"'sdar' \(diffulex-sdar [\w.]+\): head_dim is None"):
        answers(folder)
