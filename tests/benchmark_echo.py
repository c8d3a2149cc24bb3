"""A contender without a network, for tests of the benchmark; importing it is cheap."""

from __future__ import annotations

import os
from collections.abc import Sequence

from benchmarks.bench.work import Answer, Work


class Echo:
    """Answers with the prompts, and with how often it ran."""

    def __init__(self, *, fails_on: int = -1, dies: bool = False) -> None:
        self._fails_on, self._dies, self._runs = fails_on, dies, 0

    def prepare(self, work: Work, prompts: Sequence[Sequence[int]]) -> None:
        if len(prompts) == self._fails_on:
            raise ValueError("three prompts are one too many")
        self._prompts = [list(prompt) for prompt in prompts]

    def run(self) -> Answer:
        if self._dies:
            raise SystemExit(3)
        self._runs += 1
        return Answer(tokens=self._prompts, steps=self._runs, planned_steps=self._runs, rows=1, head_rows=1)


def surroundings() -> dict[str, object]:
    """What the child was told, and where it may run."""
    told = {name: os.environ[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    return {**told, "cores": sorted(os.sched_getaffinity(0))}
