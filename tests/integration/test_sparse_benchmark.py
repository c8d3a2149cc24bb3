"""The counts of benchmarks/sparse.py are what its recording says, and show what the documentation claims."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RECORDED: dict[str, Any] = json.loads((BENCHMARKS / "sparse.json").read_text())


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("sparse")


@pytest.mark.parametrize("name", ["ratio 0.7", "ratio 0.3"])
def test_counts_and_answers_are_the_recorded_ones(benchmark: ModuleType, name: str) -> None:
    found = benchmark.word_problems({name: benchmark.CACHES[name]})[name]
    recorded = RECORDED["word_problems"][name]
    # The first contender is compared with itself.
    assert {**found, "same": 0} == {**recorded, "same": 0}


def test_requests_over_few_pages_cost_what_is_recorded(benchmark: ModuleType) -> None:
    assert (
        benchmark.few_pages({"ratio 0.3": benchmark.CACHES["ratio 0.3"]})["ratio 0.3"]
        == (RECORDED["few_pages"]["ratio 0.3"])
    )


def test_the_recording_covers_every_contender_of_the_benchmark(benchmark: ModuleType) -> None:
    for measurement in ("word_problems", "few_pages", "seconds"):
        assert list(RECORDED[measurement]) == list(benchmark.CACHES)


def test_rows_fall_as_the_share_of_full_passes_and_forwards_do_not_rise() -> None:
    solved = RECORDED["word_problems"]
    dense = solved["dense"]
    # Blocks of 8 steps have 2 full passes and 6 of 8 rows; 32 steps make 4 such blocks for each of 16 problems.
    assert solved["ratio 1"]["rows"] == dense["rows"] // 4 + 16 * 4 * 6 * 8
    for facts in solved.values():
        assert facts["forwards"] == dense["forwards"]
        assert facts["head_rows"] == dense["head_rows"]
        assert facts["peak_pages"] == dense["peak_pages"]


def test_fewer_kept_tokens_hold_fewer_pages_and_let_more_requests_in() -> None:
    names = ["dense", "ratio 1", "ratio 0.7", "ratio 0.5", "ratio 0.3"]
    for measurement in ("word_problems", "few_pages"):
        pages = [RECORDED[measurement][name]["mean_pages"] for name in names]
        assert pages == sorted(pages, reverse=True)
    at_once = [RECORDED["few_pages"][name]["at_once"] for name in names]
    forwards = [RECORDED["few_pages"][name]["forwards"] for name in names]
    assert at_once == sorted(at_once)
    assert at_once[-1] >= 2 * at_once[0]
    assert forwards == sorted(forwards, reverse=True)
