"""The embedded checkpoints answer problems that they have not seen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion

from diffulex_core.engine import Diffulex
from diffulex_core.errors import CheckpointError
from diffulex_tiny import problems
from diffulex_tiny.evaluate import evaluate
from diffulex_tiny.source import TinySource, names

ASKED = list(problems.problems(1, "eval", 60))

COMMITTED: Mapping[tuple[str, problems.Task], tuple[int, float]] = {
    ("llada", "two_step"): (60, 6.989),
    ("llada2", "two_step"): (60, 16.717),
    ("llada2", "long"): (59, 17.553),
    ("dream", "two_step"): (60, 3.683),
    ("dream", "long"): (59, 3.942),
    ("gemma", "two_step"): (60, 8.5),
    ("gemma", "long"): (47, 12.702),
}
"""Checkpoint and task -> how many of 60 problems it answers exactly with its own settings, and its TPF."""
ROUNDING = 1
"""Answers that another processor's rounding may cost."""


def test_the_names_of_embedded_checkpoints_are_folders_of_at_most_6_mb() -> None:
    assert "llada" in names()
    for name in names():
        folder = TinySource().resolve(f"tiny/{name}")
        assert folder is not None
        assert sum(file.stat().st_size for file in folder.iterdir()) <= 6_000_000


def test_other_names_are_left_to_other_sources_and_unknown_ones_are_listed() -> None:
    assert TinySource().resolve("somebody/llada") is None
    assert TinySource().resolve("tiny") is None
    for wrong in ("tiny/lada", "tiny/../checkpoints/llada", "tiny/llada/deeper"):
        with pytest.raises(CheckpointError, match="tiny/llada"):
            TinySource().resolve(wrong)


@pytest.mark.parametrize(("name", "task"), COMMITTED)
def test_unseen_problems_are_answered_as_exactly_and_as_fast_as_committed(name: str, task: problems.Task) -> None:
    asked = list(problems.problems(1, "eval", 60, task))
    with Diffulex(f"tiny/{name}") as engine:
        score = evaluate(engine, asked)
    exact, tpf = COMMITTED[name, task]
    assert score.exact >= exact - ROUNDING
    assert score.tpf == pytest.approx(tpf, rel=0.03)


@pytest.mark.parametrize(
    "settings",
    [
        {"decoding_strategy": "multi_bd"},
        {"decoding_strategy": "multi_bd", "buffer_size": 1, "accept_threshold": 0.99},
        {"decoding_strategy": "multi_bd", "sampling_mode": "edit"},
        {"buffer_size": 1},
        {"block_size": 4, "buffer_size": 4},
    ],
)
def test_no_other_way_of_tiny_llada2_passes_for_the_recommended_one(settings: dict[str, object]) -> None:
    with Diffulex("tiny/llada2", **settings) as engine:
        score = evaluate(engine, list(problems.problems(1, "eval", 60, "long")))
    exact, tpf = COMMITTED["llada2", "long"]
    assert score.exact < exact - ROUNDING or score.tpf != pytest.approx(tpf, rel=0.03)


def test_transformers_reads_tiny_gemma_with_its_settings_and_answers_alike() -> None:
    """Its class cannot do without a vision network, so it gets a small one that is never asked."""
    folder = TinySource().resolve("tiny/gemma")
    assert folder is not None
    vision = {"model_type": "gemma4_vision", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8}
    config = DiffusionGemmaConfig.from_dict(
        {**json.loads((folder / "config.json").read_text()), "vision_config": vision}
    )
    native = DiffusionGemmaForBlockDiffusion.from_pretrained(folder, config=config, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    for problem in ASKED[:3]:
        prompt = tokenizer(problem.prompt, return_tensors="pt", add_special_tokens=False).input_ids
        found = native.generate(prompt, max_new_tokens=32, disable_compile=True).sequences[0, prompt.shape[1] :]
        assert tokenizer.decode(found, skip_special_tokens=True) == problem.answer


@pytest.mark.parametrize("settings", [{"decoding_strategy": "multi_bd"}, {"buffer_size": 1}, {"block_size": 4}])
def test_other_ways_of_decoding_work_on_the_same_checkpoint(settings: dict[str, object]) -> None:
    with Diffulex("tiny/llada", **settings) as engine:
        assert evaluate(engine, ASKED).accuracy >= 0.8


def test_every_checkpoint_has_a_card_and_is_asked() -> None:
    assert {name for name, _ in COMMITTED} == set(names())
    for name in names():
        folder = TinySource().resolve(f"tiny/{name}")
        assert folder is not None
        card = Path(folder, "README.md").read_text()
        assert f"# tiny/{name}\n" in card
        assert f"1 to {problems.MAX_OPERAND}" in card
        assert "95 % interval" in card
        assert f"train_tiny -- {name}" in card
        assert "What it cannot do" in card
