"""The stage times of the latest steps, kept in place: a run of any length takes the same memory."""

from __future__ import annotations

import attrs
import numpy as np

from diffulex_core.profiling.stages import STAGES, StageSeconds
from diffulex_core.types import StepOutput, StepPlan

_NOTHING = StageSeconds()


@attrs.frozen(kw_only=True)
class StepTimes:
    """One step: what it computed, and the seconds of each of its stages (`profiling.stages.STAGES`).

    Attributes:
        step: number of the plan.
        requests: that took part.
        rows, head_rows: that were fed, and that went through the head.
    """

    step: int
    requests: int
    rows: int
    head_rows: int
    schedule: float
    pack: float
    forward: float
    sample: float
    copy: float
    update: float
    other: float

    @property
    def seconds(self) -> tuple[float, ...]:
        """The stages, in the order of `STAGES`."""
        return self.schedule, self.pack, self.forward, self.sample, self.copy, self.update, self.other

    @property
    def total(self) -> float:
        """The whole step."""
        return sum(self.seconds)


class StepRing:
    """Keeps the latest `capacity` steps."""

    def __init__(self, capacity: int) -> None:
        self._seconds = np.zeros((capacity, len(STAGES)))
        self._counts = np.zeros((capacity, 4), dtype=np.int64)
        self._added = 0

    def __len__(self) -> int:
        return min(self._added, len(self._seconds))

    @property
    def added(self) -> int:
        """Steps since the beginning, those that are forgotten included."""
        return self._added

    def add(self, plan: StepPlan, output: StepOutput, *, schedule: float, execute: float, update: float) -> None:
        """Note a step.

        Args:
            schedule, update: seconds of these stages.
            execute: seconds between them; the runner says how they are divided, and `other` is the rest.
        """
        at = self._added % len(self._seconds)
        runner = _NOTHING if output.stages is None else output.stages
        rest = max(0.0, execute - runner.total)
        self._seconds[at] = (schedule, runner.pack, runner.forward, runner.sample, runner.copy, update, rest)
        self._counts[at] = (plan.step, len(plan.windows), plan.rows, output.head_rows)
        self._added += 1

    def last(self, count: int | None = None) -> tuple[StepTimes, ...]:
        """The latest steps, at most `count` of them, oldest first."""
        count = len(self) if count is None else min(count, len(self))
        places = [(self._added - count + index) % len(self._seconds) for index in range(count)]
        return tuple(
            StepTimes(
                step=numbers[0],
                requests=numbers[1],
                rows=numbers[2],
                head_rows=numbers[3],
                **dict(zip(STAGES, seconds, strict=True)),
            )
            for numbers, seconds in zip(self._counts[places].tolist(), self._seconds[places].tolist(), strict=True)
        )
