"""The stages of a step, and the clock that says how long each of them took."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Literal, Protocol

import attrs

RunnerStage = Literal["pack", "forward", "sample", "copy"]
RUNNER_STAGES: tuple[RunnerStage, ...] = ("pack", "forward", "sample", "copy")
"""What a runner does, in order; head and search count as `sample`, waiting for the device's results as `copy`."""

STAGES = ("schedule", *RUNNER_STAGES, "update", "other")
"""A step, in order; `other` is what none of the stages covers, messages to worker processes above all."""


@attrs.frozen(kw_only=True)
class StageSeconds:
    """Seconds that each stage of a runner's step took, by the clock of its process.

    A device works on while its process goes on; then the stage in which the process waits for it, `copy`, is the long
    one. While a profile is recorded every stage waits for the device, and its time is its own.

    Attributes:
        pack: rows, page tables and what attention needs to know, brought to the device.
        forward: the network without its head.
        sample: the head, and the search through its logits.
        copy: what was found on its way to the host, and the accept rules.
    """

    pack: float = 0.0
    forward: float = 0.0
    sample: float = 0.0
    copy: float = 0.0

    @property
    def total(self) -> float:
        """All stages together."""
        return self.pack + self.forward + self.sample + self.copy


class StageWatch(Protocol):
    """Is told where a step's stages begin and end; a profiler."""

    def enter(self, stage: str) -> None:
        """The stage begins."""
        ...

    def leave(self) -> None:
        """The stage that began last is at its end."""
        ...


class StageClock:
    """Times stages that follow each other, one at a time.

    Attributes:
        watch: is told of every stage; None = nobody.
    """

    def __init__(self, stages: Sequence[str] = RUNNER_STAGES) -> None:
        self.watch: StageWatch | None = None
        self._seconds = dict.fromkeys(stages, 0.0)
        self._stage: str | None = None
        self._since = 0.0

    def begin(self, stage: str) -> None:
        """End the stage that runs, if one does, and begin this one.

        Raises:
            KeyError: there is no such stage.
        """
        self._end()
        self._seconds[stage] += 0.0
        if self.watch is not None:
            self.watch.enter(stage)
        self._stage = stage
        self._since = perf_counter()

    def pause(self) -> None:
        """End the stage that runs; none does until the next begins."""
        self._end()

    def finish(self) -> tuple[float, ...]:
        """End the stage that runs; seconds of all stages since the last `finish` or `reset`, in their order."""
        self._end()
        seconds = tuple(self._seconds.values())
        self.reset()
        return seconds

    def reset(self) -> None:
        """Forget what was measured: a step that failed half-way is no part of the next one."""
        if self._stage is not None and self.watch is not None:
            self.watch.leave()
        self._stage = None
        for stage in self._seconds:
            self._seconds[stage] = 0.0

    def _end(self) -> None:
        if self._stage is None:
            return
        if self.watch is not None:
            self.watch.leave()
        self._seconds[self._stage] += perf_counter() - self._since
        self._stage = None


def stage_seconds(clock: StageClock) -> StageSeconds:
    """What a runner's clock measured since it was asked last."""
    return StageSeconds(**dict(zip(RUNNER_STAGES, clock.finish(), strict=True)))
