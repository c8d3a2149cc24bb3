"""The embedded checkpoints answer problems that they have not seen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from diffulex_core.engine import Diffulex
from diffulex_core.errors import CheckpointError
from diffulex_tiny import problems
from diffulex_tiny.evaluate import evaluate
from diffulex_tiny.source import TinySource, names

ASKED = list(problems.problems(1, "eval", 60))

LEAST: Mapping[tuple[str, problems.Task], float] = {
    ("llada", "two_step"): 0.9,
    ("llada2", "two_step"): 0.95,
    ("llada2", "long"): 0.9,
    ("dream", "two_step"): 0.95,
    ("dream", "long"): 0.9,
    ("gemma", "two_step"): 0.95,
    ("gemma", "long"): 0.7,
}
"""Checkpoint and task -> share of these problems that it answers exactly with its own settings, with some slack."""


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


@pytest.mark.parametrize(("name", "task"), LEAST)
def test_most_unseen_problems_are_answered_exactly_with_the_recommended_settings(
    name: str, task: problems.Task
) -> None:
    asked = list(problems.problems(1, "eval", 60, task))
    with Diffulex(f"tiny/{name}") as engine:
        score = evaluate(engine, asked)
    assert score.accuracy >= LEAST[name, task]
    assert score.tpf >= 2


@pytest.mark.parametrize("settings", [{"decoding_strategy": "multi_bd"}, {"buffer_size": 1}, {"block_size": 8}])
def test_other_ways_of_decoding_work_on_the_same_checkpoint(settings: dict[str, object]) -> None:
    with Diffulex("tiny/llada", **settings) as engine:
        assert evaluate(engine, ASKED).accuracy >= 0.8


def test_every_checkpoint_has_a_card_and_is_asked() -> None:
    assert {name for name, _ in LEAST} == set(names())
    for name in names():
        folder = TinySource().resolve(f"tiny/{name}")
        assert folder is not None
        card = Path(folder, "README.md").read_text()
        assert f"# tiny/{name}\n" in card
        assert f"1 to {problems.MAX_OPERAND}" in card
        assert "95 % interval" in card
        assert f"train_tiny -- {name}" in card
        assert "What it cannot do" in card
