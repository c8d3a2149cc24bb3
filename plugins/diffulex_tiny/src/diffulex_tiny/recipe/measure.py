"""What a checkpoint can do, as the rows of its card's table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from diffulex_core.engine import Diffulex
from diffulex_tiny import problems
from diffulex_tiny.evaluate import evaluate

Settings = Mapping[str, Any]

SINGLE_BLOCK: Settings = MappingProxyType({"decoding_strategy": "multi_bd", "buffer_size": 1})

SETTINGS: Mapping[str, Sequence[Settings]] = MappingProxyType({
    "llada": (
        {},
        {"buffer_size": 1},
        {"block_size": 4},
        {"block_size": 4, "buffer_size": 1},
        {"decoding_strategy": "multi_bd", "block_size": 4},
        {**SINGLE_BLOCK, "block_size": 4},
    ),
    "llada2": (
        {**SINGLE_BLOCK, "block_size": 4},
        {},
        {"buffer_size": 1},
        SINGLE_BLOCK,
        {"decoding_strategy": "multi_bd", "sampling_mode": "edit", "block_size": 16, "buffer_size": 4},
        {"decoding_strategy": "multi_bd", "block_size": 4, "buffer_size": 4},
        {"decoding_strategy": "multi_bd", "block_size": 8, "buffer_size": 4},
        {"block_size": 4, "buffer_size": 4},
    ),
    "dream": (
        SINGLE_BLOCK,
        {"decoding_strategy": "multi_bd"},
        {},
        {"buffer_size": 1},
        {"block_size": 8},
        {"decoding_strategy": "dream_canvas", "alg": "confidence_threshold", "steps": 16},
    ),
    "gemma": ({}, {"confidence_threshold": 0.005}),
})  # fmt: skip
"""Ways to decode that a card's table shows; an empty one is the checkpoint's own defaults."""

ROWS = 16384
"""Rows of a forward, enough for all that run at once: an answer then takes as many forwards as it does alone."""

TASKS: Mapping[str, Sequence[problems.Task]] = MappingProxyType({"llada": ("two_step",)})
"""Tasks of checkpoints that were not trained for all."""


def measure(name: str, folder: Path, count: int) -> None:
    """Print a row for each way to decode and each task, on `count` unseen problems."""
    torch.set_grad_enabled(False)
    print("| Task | settings | exact | 95 % interval | TPF | forwards per answer |")
    print("| --- | --- | --- | --- | --- | --- |")
    for settings in SETTINGS[name]:
        for task in TASKS.get(name, ("two_step", "long")):
            asked = list(problems.problems(1, "eval", count, task))
            with Diffulex(str(folder), max_num_batched_tokens=ROWS, **settings) as engine:
                score = evaluate(engine, asked)
            told = ", ".join(f"{key}={value}" for key, value in settings.items()) or "recommended"
            low, high = (100 * edge for edge in score.interval())
            print(
                f"| {task} | {told} | {score.accuracy:.1%} | {low:.1f} - {high:.1f} % "
                f"| {score.tpf:.2f} | {score.nfe:.2f} |",
                flush=True,
            )
