"""Adapters that peft wrote, over the networks of transformers that peft ran them in: ours give the same logits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from tests.core.lora_families import CASES, LLADA_CASE, QWEN2_CASE, Case
from tests.core.lora_kit import logits, oracle_logits, tune

# D2F's adapters: rank 32 over all projections, dropout while training.
D2F: Mapping[str, Any] = {"r": 32, "lora_alpha": 32, "lora_dropout": 0.1, "target_modules": ["q_proj", "v_proj"]}

LLADA_ADAPTERS: Mapping[str, Mapping[str, Any]] = {
    "d2f": D2F,
    "every name": {"r": 4, "target_modules": ["q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj"]},
    "one name for the MLP's output and the head": {"r": 3, "target_modules": ["ff_out"]},
    "rank-stabilised": {"r": 16, "lora_alpha": 8, "use_rslora": True, "target_modules": ["attn_out", "k_proj"]},
    "ranks and alphas by pattern": {
        "r": 4,
        "lora_alpha": 6,
        "target_modules": ["q_proj", "ff_proj", "ff_out"],
        "rank_pattern": {r"blocks\.1\.q_proj": 7, "ff_proj": 2},
        "alpha_pattern": {"1.ff_proj": 24, r"^model\.transformer\.ff_out": 1},
    },
    "regular expression": {"r": 5, "target_modules": r".*blocks\.[01]\.(ff|up|q)_proj"},
    "all-linear": {"r": 2, "target_modules": "all-linear"},
    "one layer": {"r": 4, "target_modules": ["v_proj", "up_proj"], "layers_to_transform": 1},
    "a layer of a named list": {
        "r": 4, "target_modules": ["v_proj", "up_proj"], "layers_to_transform": [0], "layers_pattern": "blocks",
    },
    "but some": {"r": 4, "target_modules": ["v_proj", "up_proj"], "exclude_modules": ["0.v_proj"]},
    "but what an expression says": {"r": 4, "target_modules": ["v_proj", "up_proj"], "exclude_modules": r".*1\.up.*"},
}  # fmt: skip


def check(case: Case, folder: Path, options: Mapping[str, Any]) -> None:
    checkpoint = case.write(folder / "base")
    oracle = case.oracle(checkpoint)
    base = logits(case.family.load(checkpoint))
    torch.testing.assert_close(base, oracle_logits(oracle), atol=1e-4, rtol=1e-4)
    tune(oracle, case.names, LoraConfig(**options), folder / "adapter")
    expected = oracle_logits(oracle)
    assert (expected - base).abs().max() > 0.1
    for merge in (False, True):
        found = logits(case.family.adapted(checkpoint, folder / "adapter", merge=merge))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", LLADA_ADAPTERS)
def test_an_adapter_over_lladas_names_gives_pefts_logits_beside_the_weights_and_in_them(
    tmp_path: Path, name: str
) -> None:
    check(LLADA_CASE, tmp_path, LLADA_ADAPTERS[name])


@pytest.mark.parametrize(
    "options",
    [
        {"r": 8, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]},
        {"r": 8, "target_modules": ["q_proj", "v_proj"], "rank_pattern": {"layers.0.self_attn.q_proj": 3}},
        {"r": 6, "target_modules": ["lm_head", "down_proj"], "use_rslora": True},
    ],
    ids=["every name", "some", "head"],
)
def test_an_adapter_over_qwens_names_gives_pefts_logits(tmp_path: Path, options: Mapping[str, Any]) -> None:
    check(QWEN2_CASE, tmp_path, options)


@pytest.mark.parametrize(
    "targets", [["query_key_value"], ["query_key_value", "dense", "gate_proj", "down_proj"], "all-linear"], ids=str
)
def test_an_adapter_over_a_packed_projection_gives_pefts_logits(tmp_path: Path, targets: list[str] | str) -> None:
    check(CASES["packed"], tmp_path, {"r": 5, "lora_alpha": 10, "target_modules": targets})


def test_all_linear_as_it_stands_means_everything_but_the_head(tmp_path: Path) -> None:
    case = QWEN2_CASE
    checkpoint = case.write(tmp_path / "base")
    oracle = case.oracle(checkpoint)
    others = {path: place for path, place in case.names.items() if path != "lm_head"}
    tune(oracle, others, LoraConfig(r=4, target_modules="all-linear"), tmp_path / "adapter")
    # peft writes the names it found; a person may leave the word.
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "target_modules": "all-linear"}))
    report = case.family.adapt(case.family.load(checkpoint), checkpoint, tmp_path / "adapter", merge=True)
    assert set(report.layers) == set(others) - {"model.embed_tokens"}
    found = logits(case.family.adapted(checkpoint, tmp_path / "adapter", merge=False))
    torch.testing.assert_close(found, oracle_logits(oracle), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("merge", [False, True], ids=["beside", "merged"])
def test_half_precision_stays_near_pefts_full_precision(tmp_path: Path, name: str, merge: bool) -> None:
    case = CASES[name]
    checkpoint = case.write(tmp_path / "base")
    oracle = case.oracle(checkpoint)
    tune(oracle, case.names, LoraConfig(r=8, target_modules="all-linear"), tmp_path / "adapter")
    expected = oracle_logits(oracle)
    found = logits(case.family.adapted(checkpoint, tmp_path / "adapter", merge=merge, dtype=torch.bfloat16))
    assert found.dtype == torch.bfloat16
    # As for the base network in bfloat16: 8 bits of mantissa over two layers.
    assert (found.float() - expected).abs().max() < 0.05 * expected.abs().max()
