"""Broken subjects for the checks of `diffulex_core.testing.checks.executors`."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, ClassVar

import attrs
import torch

from diffulex_core.errors import CheckpointError
from diffulex_core.host import Host
from diffulex_core.sizing import Capacity
from diffulex_core.testing.check import AnyCheck
from diffulex_core.testing.checks import executors
from diffulex_core.testing.engines import sharp
from diffulex_core.testing.subjects import ExecutorSubject, MakeExecutor
from diffulex_core.types import StepOutput, StepPlan
from diffulex_core.worker import Blueprint, Worker
from tests.conformance.mutant import Mutant


class Here(Worker):
    """The engine's own process, sound; mutants change something."""

    def __init__(self, blueprint: Blueprint, *, host: Host, devices: Sequence[torch.device], **given: Any) -> None:
        super().__init__(blueprint, host=host, device=devices[0], sharers=given["sharers"])


class TurnsWindows(Here):
    """Decisions come back in another order."""

    def execute(self, plan: StepPlan) -> StepOutput:
        output = super().execute(plan)
        return attrs.evolve(output, decisions=tuple(reversed(output.decisions)))


class SkipsAStep(Here):
    """Every third plan is not executed; the answer of the one before comes back."""

    steps = 0

    def execute(self, plan: StepPlan) -> StepOutput:
        self.steps += 1
        if self.steps % 3 or not plan.windows:
            self.last = super().execute(plan)
        return self.last


class TellsAnotherVocabulary(Here):
    """The ids of the head that are padding count as tokens."""

    @property
    def vocab_size(self) -> int:
        return super().vocab_size + 8


class HidesTheFailure(Here):
    """A checkpoint that cannot be loaded is noticed when the first plan comes."""

    def __init__(self, blueprint: Blueprint, **given: Any) -> None:
        with suppress(CheckpointError):
            super().__init__(blueprint, **given)

    def capacity(self) -> Capacity:
        return Capacity(page_bytes=1024, available=2**30)


class WrapsTheFailure(Here):
    """A checkpoint that cannot be loaded is a RuntimeError."""

    def __init__(self, blueprint: Blueprint, **given: Any) -> None:
        try:
            super().__init__(blueprint, **given)
        except CheckpointError as error:
            raise RuntimeError("a worker died") from error


class LeavesAProcess(Here):
    """A process that it starts is not ended."""

    started: ClassVar[list[subprocess.Popen[bytes]]] = []

    def __init__(self, blueprint: Blueprint, **given: Any) -> None:
        super().__init__(blueprint, **given)
        self.started.append(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE))


class LeavesASocket(Here):
    """The port on which it waits for others stays open."""

    ports: ClassVar[list[socket.socket]] = []

    def __init__(self, blueprint: Blueprint, **given: Any) -> None:
        super().__init__(blueprint, **given)
        self.ports.append(socket.create_server(("127.0.0.1", 0)))


class ClosesOnce(Here):
    """Closing it again is an error."""

    closed = False

    def close(self) -> None:
        if self.closed:
            raise ValueError("closed already")
        self.closed = True
        super().close()


@contextmanager
def _cleared() -> Iterator[None]:
    """Take away afterwards what mutants leave behind."""
    try:
        yield
    finally:
        for process in LeavesAProcess.started:
            process.communicate(b"\n")
        for port in LeavesASocket.ports:
            port.close()
        LeavesAProcess.started.clear()
        LeavesASocket.ports.clear()


def _mutant(check: AnyCheck, name: str, make: MakeExecutor) -> Mutant:
    return Mutant(name=name, check=check, subject=lambda: ExecutorSubject(name="mutant", factory=make), around=_cleared)


_TABLE: tuple[tuple[AnyCheck, tuple[type[Here], ...]], ...] = (
    (executors.check_executor_decides_as_one_process_does, (TurnsWindows, SkipsAStep, TellsAnotherVocabulary)),
    (
        executors.check_executor_tells_failures_and_ends,
        (HidesTheFailure, WrapsTheFailure, LeavesAProcess, LeavesASocket, ClosesOnce),
    ),
)

MUTANTS: tuple[Mutant, ...] = (
    _mutant(executors.check_executor_decides_as_one_process_does, "Its network is surer than its weights are", sharp),
    *(_mutant(check, (kind.__doc__ or "").strip().rstrip("."), kind) for check, kinds in _TABLE for kind in kinds),
)
