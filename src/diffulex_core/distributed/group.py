"""The engine's end of a group of worker processes: one call at a time, answered by all of them or by one error."""

from __future__ import annotations

import math
import os
import pickle
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NoReturn

from diffulex_core.distributed.messages import Answer, Assignment, Call, Failure, Greeting, Manifest, Method
from diffulex_core.distributed.process import START_ANEW, WorkerProcess, heard_from
from diffulex_core.errors import PeerLost, WorkerError

CAUSE_SECONDS = 2.0
"""How long the cause is awaited when a rank has only lost the others."""

CLOSE_SECONDS = 10.0
"""How long workers may take to end by themselves."""

_DOING: dict[Method, str] = {
    "capacity": "loading",
    "allocate": "allocating the KV cache",
    "execute": "executing a step",
    "start_profile": "starting a profile",
    "stop_profile": "writing a profile",
}


class WorkerGroup:
    """Worker processes that are called together.

    When one of them dies, is silent for too long or, in a group of several, fails, the others are ended and every later
    call raises. A call that an interrupt cut short is forgotten; its answers are not taken for those of the next.
    """

    def __init__(
        self, assignments: Sequence[Assignment], *, replica: int, manifest: Manifest, timeout: float = math.inf
    ) -> None:
        """Start one process for each assignment; they load until the first call.

        Args:
            assignments: what each rank loads.
            replica: number of the group, for messages.
            manifest: the plugins that the workers must find.
            timeout: longest wait for the answers to a call in seconds, loading aside.
        Raises:
            ConfigError: processes cannot be started here.
        """
        self._workers: list[WorkerProcess] = []
        self._owner = os.getpid()
        self._finalizer = weakref.finalize(self, _kill, self._workers, self._owner)
        self._turn = threading.Lock()
        self._timeout = timeout
        self._serial = 0
        self._calling = True
        self._whole = True
        """False while a message is on its way: an interrupt that comes then leaves half of it."""
        self._lost: WorkerError | None = None
        with ExitStack() as failing:
            failing.callback(self.close)
            for rank, assignment in enumerate(assignments):
                inherited = () if assignment.listener is None else (assignment.listener,)
                worker = WorkerProcess.start(replica=replica, rank=rank, inherited=inherited)
                self._workers.append(worker)
                worker.send(pickle.dumps(Greeting(replica=replica, rank=rank, manifest=manifest)))
                worker.send(pickle.dumps(assignment))
            failing.pop_all()

    def call(self, method: Method, *arguments: Any, meanwhile: Callable[[], None] | None = None) -> list[Any]:
        """Call a method of every rank's `Worker`; returns what they return, in rank order.

        Args:
            meanwhile: called once all ranks have been told what to do, before their answers are awaited.
        Raises:
            WorkerError: a worker died or did not answer in time, the group was ended before, or this is a fork.
            Exception: whatever the method, or loading, raised first.
        """
        refuse_fork(self._owner)
        with self._turn:
            if not self._whole and self._lost is None:
                self._lost = WorkerError("An interrupt came in the middle of a message to or from them.", rank=0)
                self._end(patience=0)
            if self._lost is not None:
                raise WorkerError(
                    f"The engine has no workers any more. {self._lost}",
                    rank=self._lost.rank,
                    replica=self._lost.replica,
                    exit_code=self._lost.exit_code,
                )
            if self._serial == 0:
                self._await(_DOING["capacity"], math.inf)
            self._serial += 1
            self._calling = True
            message = pickle.dumps(Call(serial=self._serial, method=method, arguments=arguments), protocol=5)
            self._whole = False
            for worker in self._workers:
                worker.send(message)
            self._whole = True
            if meanwhile is not None:
                meanwhile()
            return self._await(_DOING[method], self._timeout)

    def close(self) -> None:
        """End the workers and wait until they are gone, also those that a thread is calling. Again: nothing.

        In a fork nothing happens: the workers are the first process's.
        """
        if os.getpid() != self._owner:
            return
        if self._lost is None:
            self._lost = WorkerError("It was closed.", rank=0)
            if not self._calling:
                for worker in self._workers:
                    worker.send(pickle.dumps(None))
            self._end(patience=0 if self._calling else CLOSE_SECONDS)
        with self._turn:
            for worker in self._workers:
                worker.connection.close()

    def _await(self, doing: str, timeout: float) -> list[Any]:
        """Wait for every rank's answer to the latest call."""
        silent = list(self._workers)
        values: dict[int, Any] = {}
        lost: PeerLost | None = None
        # The ranks have the same limit and know better who is missing; they are given time to say it.
        deadline = time.monotonic() + timeout + CAUSE_SECONDS
        while silent and (heard := heard_from(silent, deadline)):
            for worker in heard:
                self._whole = False
                message = worker.receive()
                self._whole = True
                match message:
                    case Answer() if message.serial == self._serial:
                        values[worker.rank] = message.value
                        silent.remove(worker)
                    case Failure() if message.serial == self._serial or len(self._workers) > 1:
                        error = message.raised(str(worker))
                        if not isinstance(error, PeerLost):
                            self._fail(error)
                        silent.remove(worker)
                        lost = lost or error
                        deadline = min(deadline, time.monotonic() + CAUSE_SECONDS)
                    case None:
                        self._fail(worker.death(doing), dead=True)
        if lost is not None:
            self._fail(lost)
        if silent:
            self._fail(_silence(silent, doing, timeout), dead=True)
        self._calling = False
        return [values[worker.rank] for worker in self._workers]

    def _fail(self, error: Exception, *, dead: bool = False) -> NoReturn:
        """Raise a worker's error. The group is ended, unless it is one worker that lives and has loaded."""
        if dead or self._serial == 0 or len(self._workers) > 1:
            text = f"They were ended after {type(error).__name__}: {error}"
            self._lost = error if isinstance(error, WorkerError) else WorkerError(text, rank=0)
            self._end(patience=0)
        self._calling = False
        raise error

    def _end(self, *, patience: float) -> None:
        deadline = time.monotonic() + patience
        for worker in self._workers:
            worker.end(patience=max(0.0, deadline - time.monotonic()))
        self._finalizer.detach()


def refuse_fork(owner: int) -> None:
    """Raise a `WorkerError` in any process but `owner`: two that talk to the same workers get each other's answers."""
    if os.getpid() != owner:
        text = f"The workers are those of process {owner}, of which this one is a fork. Create an engine here."
        raise WorkerError(text, rank=0)


def _silence(workers: Sequence[WorkerProcess], doing: str, timeout: float) -> WorkerError:
    names = " and ".join(map(str, workers))
    text = f"No answer for {timeout:g} seconds (distributed_timeout_seconds) while {doing}, from {names}. {START_ANEW}"
    return WorkerError(text, rank=workers[0].rank, replica=workers[0].replica)


def _kill(workers: list[WorkerProcess], owner: int) -> None:
    """End the workers of a group that nobody closed; a fork of the engine's process has no say in it."""
    if os.getpid() == owner:
        for worker in workers:
            worker.end(patience=0)
