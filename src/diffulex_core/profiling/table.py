"""The stages of many steps as a table: how long each usually takes, and its share of the whole."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from diffulex_core.profiling.ring import StepTimes
from diffulex_core.profiling.stages import STAGES

MILLISECONDS = 1000.0


@attrs.frozen(kw_only=True)
class StageStatistics:
    """One stage, or the whole `step`, over some steps.

    Attributes:
        stage: its name.
        median, p90: milliseconds in one step.
        share: of the time of all steps together, 0 to 1.
    """

    stage: str
    median: float
    p90: float
    share: float


@attrs.frozen(kw_only=True)
class ProfileSummary:
    """Some steps in numbers.

    Attributes:
        steps: how many.
        stages: each stage, in order, and the step.
        requests, rows, head_rows: medians over the steps.
    """

    steps: int
    stages: tuple[StageStatistics, ...]
    requests: float
    rows: float
    head_rows: float

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return attrs.asdict(self)


def summarize(steps: Sequence[StepTimes]) -> ProfileSummary:
    """The statistics of at least one step."""
    seconds = np.array([step.seconds for step in steps])
    table = np.column_stack((seconds, seconds.sum(axis=1))) * MILLISECONDS
    whole = table[:, -1].sum() or 1.0
    return ProfileSummary(
        steps=len(steps),
        stages=tuple(
            StageStatistics(
                stage=name,
                median=float(np.median(column)),
                p90=float(np.percentile(column, 90)),
                share=float(column.sum() / whole),
            )
            for name, column in zip((*STAGES, "step"), table.T, strict=True)
        ),
        requests=float(np.median([step.requests for step in steps])),
        rows=float(np.median([step.rows for step in steps])),
        head_rows=float(np.median([step.head_rows for step in steps])),
    )


def write_steps(steps: Sequence[StepTimes], path: Path) -> Path:
    """Write a CSV file with a line for each step, stages in milliseconds; returns its path."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "requests", "rows", "head_rows", *(f"{stage}_ms" for stage in STAGES)])
        for step in steps:
            times = [f"{seconds * MILLISECONDS:.6f}" for seconds in step.seconds]
            writer.writerow([step.step, step.requests, step.rows, step.head_rows, *times])
    return path
