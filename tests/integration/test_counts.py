"""Forwards, rows and head rows of the recorded prompts: those of `benchmarks/nfe.json`, never above Diffulex 0.1."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks.nfe import PARITY, RECORDED_WITH, measure

COUNTED = json.loads((Path(__file__).parents[2] / "benchmarks" / "nfe.json").read_text())


def test_every_recording_of_an_engine_is_counted() -> None:
    recordings = {path.stem: json.loads(path.read_text()) for path in PARITY.glob("vectors/*.json")}
    assert set(COUNTED) == {name for name, recording in recordings.items() if "config" in recording}


@pytest.mark.parametrize("name", COUNTED)
def test_counts_are_those_of_the_benchmark_and_never_more_than_the_references(name: str) -> None:
    recording = json.loads((PARITY / "vectors" / f"{name}.json").read_text())
    counts = measure(recording, RECORDED_WITH.get(name, {}))
    assert counts == COUNTED[name]
    for count in counts:
        assert count["same_tokens"]
        assert count["forwards"] <= count["reference_forwards"]
        assert count["rows"] <= count["reference_rows"]
        assert count["head_rows"] <= count["rows"]
