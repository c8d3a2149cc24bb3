"""An engine with an adapter, D2F's use of them: other tokens than the base model's, the same ones merged or not."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from diffulex_core.engine import Diffulex
from diffulex_core.errors import CheckpointError, ConfigError
from diffulex_core.outputs import ReqTrajectory
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.weights.files import take_inventory
from tests.core.lora_kit import adapter_tensors, random_matrices, write_adapter
from tests.integration.engines import CHECKPOINT, SETTINGS, engine, host, prompt, vectors

RECORDING = vectors("llada-d2f")
D2F = {**RECORDING["config"], "num_pages": 64}
TARGETS = ("q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rank 32 over all projections but those called ff_out, large enough to change tokens."""
    shapes = {
        tensor.name.removesuffix(".weight"): (tensor.shape[0], tensor.shape[1])
        for tensor in take_inventory(CHECKPOINT).tensors
        if tensor.shape is not None and tensor.name.removesuffix(".weight").endswith(TARGETS)
    }
    return write_adapter(
        tmp_path_factory.mktemp("adapter"),
        adapter_tensors(random_matrices(shapes, 32)),
        r=32,
        lora_alpha=16,
        lora_dropout=0.1,
        target_modules=list(TARGETS),
        base_model_name_or_path="parity/llada",
    )


def answers(**settings: Any) -> list[ReqTrajectory]:
    with engine(**{**D2F, **settings}) as ready:
        params = SamplingParams(temperature=0, max_tokens=48)
        return list(ready.generate([prompt(length, salt=length) for length in (5, 16, 29)], params))


def tokens(found: list[ReqTrajectory]) -> list[list[int]]:
    return [list(answer.token_ids) for answer in found]


def test_an_adapter_changes_the_answers_and_merging_it_does_not(adapter: Path) -> None:
    base = tokens(answers())
    beside = tokens(answers(use_lora=True, lora_path=str(adapter)))
    merged = tokens(answers(use_lora=True, lora_path=str(adapter), pre_merge_lora=True))
    assert all(mine != plain for mine, plain in zip(beside, base, strict=True))
    assert merged == beside


def test_two_processes_that_share_the_layers_answer_as_one(adapter: Path) -> None:
    lora: dict[str, Any] = {"use_lora": True, "lora_path": str(adapter)}
    assert tokens(answers(**lora, tensor_parallel_size=2)) == tokens(answers(**lora))


def test_with_an_adapter_the_schedule_does_not_change_an_answer(adapter: Path) -> None:
    lora: dict[str, Any] = {"use_lora": True, "lora_path": str(adapter)}
    expected = tokens(answers(**lora))
    assert tokens(answers(**lora, max_num_reqs=1)) == expected
    assert tokens(answers(**lora, max_num_batched_tokens=64)) == expected


def test_pages_shared_between_requests_hold_what_the_adapter_made_of_them(adapter: Path) -> None:
    lora: dict[str, Any] = {"use_lora": True, "lora_path": str(adapter), "decoding_strategy": "multi_bd"}
    text = prompt(40)
    found = []
    for caching in (True, False):
        with engine(**lora, enable_prefix_caching=caching) as ready:
            params = SamplingParams(temperature=0, max_tokens=24)
            found.append([tokens(list(ready.generate([text], params))) for _ in range(2)])
    assert found[0] == found[1]
    assert found[0][0] == found[0][1]


def test_an_adapter_over_dummy_weights_serves_benchmarks_without_a_checkpoint(adapter: Path, tmp_path: Path) -> None:
    for path in CHECKPOINT.glob("*.json"):
        shutil.copy(path, tmp_path)
    settings = {**SETTINGS, "use_lora": True, "lora_path": str(adapter), "load_format": "dummy"}
    for merge in (False, True):
        with Diffulex(tmp_path, host=host(), strict=True, **settings, pre_merge_lora=merge) as ready:
            [answer] = ready.generate([prompt(9)], SamplingParams(temperature=0, max_tokens=8, ignore_eos=True))
            assert len(answer.token_ids) == 8
    wrong = adapter_tensors({"model.transformer.blocks.0.nothing": (torch.zeros(4, 7), torch.zeros(7, 4))})
    settings["lora_path"] = str(write_adapter(tmp_path / "wrong", wrong, target_modules=["q_proj"]))
    with pytest.raises(CheckpointError, match=r"blocks\.0\.q_proj' is a target, but the adapter holds"):
        Diffulex(tmp_path, host=host(), strict=True, **settings)


def test_an_adapter_from_elsewhere_is_never_left_out_in_silence(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="use_lora needs the adapter's directory"):
        engine(use_lora=True)
    with pytest.raises(ConfigError, match="set use_lora, or leave lora_path out"):
        engine(lora_path=str(adapter))
    with pytest.raises(CheckpointError, match="There is no directory"):
        engine(use_lora=True, lora_path=str(tmp_path / "nowhere"))
    with pytest.raises(CheckpointError, match=r"adapter_config\.json is missing"):
        engine(use_lora=True, lora_path=str(CHECKPOINT))
    other = adapter_tensors({"model.transformer.blocks.0.q_proj": (torch.zeros(4, 7), torch.zeros(7, 4))})
    write_adapter(tmp_path / "other", other, target_modules=["0.q_proj"])
    with pytest.raises(CheckpointError, match=r"into the model family 'llada' \(diffulex-llada .*\):\n.*has shape"):
        engine(use_lora=True, lora_path=str(tmp_path / "other"))


def test_an_adapter_that_is_turned_off_is_named_in_a_warning(adapter: Path) -> None:
    with engine(use_lora=False, lora_path=str(adapter)) as ready:
        assert any("lora_path" in warning and "use_lora" in warning for warning in ready.config.warnings)


@pytest.mark.parametrize("name", ["parity/llada", "parity/dream"])
def test_an_adapter_is_used_with_a_warning_if_it_was_trained_over_another_model(
    adapter: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    copy = Path(shutil.copytree(adapter, tmp_path / "copy"))
    settings = json.loads((copy / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": name}))
    with caplog.at_level(logging.WARNING), engine(use_lora=True, lora_path=str(copy)):
        said = [record.message for record in caplog.records if "was trained over" in record.message]
    assert [f"'{name}'" in message for message in said] == [True] * (name != "parity/llada")
