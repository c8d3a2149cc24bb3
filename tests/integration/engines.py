"""Engines on the parity checkpoints, with settings that make every mechanism matter."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from diffulex_core.engine import Diffulex
from diffulex_core.host import Host

PARITY = Path(__file__).parents[1] / "parity"
CHECKPOINT = PARITY / "checkpoints" / "llada"
MASK = 280
EOS = 281

SETTINGS: dict[str, Any] = {
    "decoding_strategy": "multi_bd",
    "block_size": 8,
    "page_size": 16,
    "buffer_size": 3,
    "accept_threshold": 0.6,
    "semi_complete_threshold": 0.5,
    "max_model_len": 256,
    "num_pages": 64,
}


@cache
def host() -> Host:
    """The installed plugins; discovery is pure, so tests may share it."""
    return Host.discover()


def engine(checkpoint: str = "llada", **settings: Any) -> Diffulex:
    """An engine on one of the parity checkpoints; `settings` override `SETTINGS`."""
    return Diffulex(PARITY / "checkpoints" / checkpoint, host=host(), strict=True, **{**SETTINGS, **settings})


def vectors(name: str) -> dict[str, Any]:
    """A recording: config, sampling and cases."""
    data: dict[str, Any] = json.loads((PARITY / "vectors" / f"{name}.json").read_text())
    return data


def prompt(length: int, salt: int = 0) -> list[int]:
    """A prompt of plain byte tokens."""
    return [(7 * i * i + 13 * i + 31 * salt + 5) % 200 + 20 for i in range(length)]
