"""Stage times: the clock, the ring of the latest steps, and the table over them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, strategies as st
from torch.profiler import ProfilerAction

from diffulex_core.config.sections import ProfilerConfig
from diffulex_core.profiling import stages
from diffulex_core.profiling.ring import StepRing, StepTimes
from diffulex_core.profiling.session import schedule_of
from diffulex_core.profiling.stages import STAGES, StageClock, StageSeconds, stage_seconds
from diffulex_core.profiling.table import summarize, write_steps
from diffulex_core.types import StepOutput, StepPlan


class Heard:
    """A watch that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def enter(self, stage: str) -> None:
        self.told.append(stage)

    def leave(self) -> None:
        self.told.append("/")


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the clock will read, one number after the other."""
    readings: list[float] = []
    monkeypatch.setattr(stages, "perf_counter", lambda: readings.pop(0))
    return readings


def test_a_stage_lasts_until_the_next_one_begins(hands: list[float]) -> None:
    clock = StageClock()
    hands += [10.0, 11.0, 11.0, 13.0, 13.0, 17.0, 17.0, 25.0]
    for stage in ("pack", "forward", "sample", "copy"):
        clock.begin(stage)
    assert stage_seconds(clock) == StageSeconds(pack=1.0, forward=2.0, sample=4.0, copy=8.0)


def test_a_stage_that_comes_twice_counts_twice_and_one_that_stays_away_counts_nothing(hands: list[float]) -> None:
    clock = StageClock(("a", "b", "c"))
    hands += [0.0, 1.0, 1.0, 3.0, 3.0, 6.0]
    for stage in ("a", "b", "a"):
        clock.begin(stage)
    assert clock.finish() == (4.0, 2.0, 0.0)
    assert clock.finish() == (0.0, 0.0, 0.0)


def test_a_step_that_failed_half_way_is_no_part_of_the_next_one(hands: list[float]) -> None:
    clock, heard = StageClock(), Heard()
    clock.watch = heard
    hands += [0.0, 5.0, 5.0, 100.0, 101.0]
    clock.begin("pack")
    clock.begin("forward")
    clock.reset()
    clock.begin("pack")
    assert stage_seconds(clock) == StageSeconds(pack=1.0)
    assert heard.told == ["pack", "/", "forward", "/", "pack", "/"]


def test_a_stage_that_does_not_exist_is_refused() -> None:
    with pytest.raises(KeyError):
        StageClock().begin("schedule")


def plan(step: int) -> StepPlan:
    return StepPlan(step=step, windows=())


@given(
    seconds=st.lists(st.floats(0, 10), max_size=12), capacity=st.integers(1, 5), wanted=st.none() | st.integers(0, 9)
)
@example(seconds=[1.0, 2.0, 3.0, 4.0, 5.0], capacity=4, wanted=2)
def test_the_ring_keeps_the_latest_steps_in_order(seconds: Sequence[float], capacity: int, wanted: int | None) -> None:
    ring = StepRing(capacity)
    for number, each in enumerate(seconds):
        output = StepOutput(decisions=(), head_rows=number, stages=StageSeconds(forward=each))
        ring.add(plan(number), output, schedule=1.0, execute=each + 2.0, update=3.0)
    kept = list(enumerate(seconds))[-capacity:]
    if wanted is not None:
        kept = kept[len(kept) - min(wanted, len(kept)) :]
    found = ring.last(wanted)
    assert [(each.step, each.head_rows, each.forward) for each in found] == [(n, n, each) for n, each in kept]
    assert all(each.other == pytest.approx(2.0, abs=1e-9) for each in found)
    assert ring.added == len(seconds)


def test_a_runner_that_says_nothing_leaves_its_time_to_the_rest() -> None:
    ring = StepRing(3)
    ring.add(plan(0), StepOutput(decisions=(), head_rows=0), schedule=1.0, execute=5.0, update=0.5)
    [found] = ring.last()
    assert found.seconds == (1.0, 0.0, 0.0, 0.0, 0.0, 0.5, 5.0)
    assert found.total == 6.5


def steps() -> list[StepTimes]:
    """Ten steps whose forwards take 1 to 10 ms; everything else takes 0.5 ms."""
    rest = {stage: 0.0005 for stage in STAGES if stage != "forward"}
    return [
        StepTimes(step=number, requests=2, rows=8 * number, head_rows=4, forward=number / 1000, **rest)
        for number in range(1, 11)
    ]


def test_the_table_has_medians_ninth_tenths_and_shares() -> None:
    table = summarize(steps())
    by_name = {stage.stage: stage for stage in table.stages}
    assert [stage.stage for stage in table.stages] == [*STAGES, "step"]
    assert (table.steps, table.requests, table.rows, table.head_rows) == (10, 2.0, 44.0, 4.0)
    assert by_name["forward"].median == pytest.approx(5.5)
    assert by_name["forward"].p90 == pytest.approx(9.1)
    assert by_name["forward"].share == pytest.approx(55 / 85)
    assert by_name["pack"].share == pytest.approx(5 / 85)
    assert by_name["step"].median == pytest.approx(8.5)
    assert sum(stage.share for stage in table.stages[:-1]) == pytest.approx(by_name["step"].share) == 1.0


def test_steps_are_written_with_a_line_each(tmp_path: Path) -> None:
    path = write_steps(steps(), tmp_path / "steps.csv")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10
    assert float(rows[4]["forward_ms"]) == 5.0
    assert rows[4]["rows"] == "40"


@given(wait=st.integers(0, 3), warmup=st.integers(0, 3), active=st.integers(0, 3), repeat=st.integers(0, 3))
def test_the_schedule_waits_warms_up_records_and_repeats(wait: int, warmup: int, active: int, repeat: int) -> None:
    action = schedule_of(
        ProfilerConfig(delay_iterations=wait, warmup_iterations=warmup, max_iterations=active, repeat=repeat)
    )
    if active == 0:
        expected = [ProfilerAction.NONE] * wait + [ProfilerAction.WARMUP] * warmup + [ProfilerAction.RECORD] * 40
    else:
        once = [ProfilerAction.NONE] * wait + [ProfilerAction.WARMUP] * warmup
        once += [ProfilerAction.RECORD] * (active - 1) + [ProfilerAction.RECORD_AND_SAVE]
        expected = once * (repeat or 40) + [ProfilerAction.NONE] * 40
    assert [action(step) for step in range(30)] == expected[:30]


def test_the_percentiles_are_those_of_numpy() -> None:
    found = {stage.stage: stage.p90 for stage in summarize(steps()).stages}
    assert found["step"] == pytest.approx(float(np.quantile([n + 3.0 for n in range(1, 11)], 0.9)))
