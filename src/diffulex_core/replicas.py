"""Data parallelism: several copies of the network behind one scheduler and one executor.

A replica is a scheduler with pages of its own and an executor with weights of its own. Requests are divided among them
when they are added and stay where they are. A step is a step of every replica that has work, at the same time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import attrs

from diffulex_core.distributed.group import refuse_fork
from diffulex_core.profiling.session import Recording
from diffulex_core.profiling.stages import StageSeconds
from diffulex_core.protocols import Executor, ProfiledExecutor, Req, Scheduler
from diffulex_core.sizing import Capacity
from diffulex_core.types import CompletionReason, HowRun, StepOutput, StepPlan

T = TypeVar("T")

_HOW: tuple[HowRun, ...] = ("eager", "captured", "replayed")
"""What is told of a step that replicas ran differently: the first that one of them did."""


@attrs.frozen(kw_only=True, eq=False)
class JoinedPlan(StepPlan):
    """The plans of several replicas as one; its windows are theirs, one replica after the other.

    Attributes:
        parts: the plan of each replica that has one, in the order of the windows.
    """

    parts: Mapping[int, StepPlan]


class ReplicaScheduler:
    """A scheduler of schedulers: every request goes to the replica that has the least left to do."""

    def __init__(self, schedulers: Sequence[Scheduler]) -> None:
        self._schedulers = tuple(schedulers)
        self._homes: dict[int, tuple[int, int]] = {}
        """Request -> its replica and its weight there."""
        self._load = [0] * len(self._schedulers)
        self._step = 0

    def add(self, request: Req) -> None:
        if request.request_id in self._homes:
            raise KeyError(f"request {request.request_id} was added before")
        replica = min(range(len(self._load)), key=self._load.__getitem__)
        self._schedulers[replica].add(request)
        weight = request.most_slots()
        self._homes[request.request_id] = replica, weight
        self._load[replica] += weight

    def abort(self, request_id: int, reason: CompletionReason = CompletionReason.ABORTED) -> bool:
        home = self._homes.get(request_id)
        if home is None or not self._schedulers[home[0]].abort(request_id, reason):
            return False
        self._forget(request_id)
        return True

    def schedule(self) -> StepPlan | None:
        planned = ((replica, scheduler.schedule()) for replica, scheduler in enumerate(self._schedulers))
        parts = {replica: plan for replica, plan in planned if plan is not None}
        if not parts:
            return None
        joined = JoinedPlan(
            step=self._step,
            windows=tuple(window for plan in parts.values() for window in plan.windows),
            ended=tuple(request_id for plan in parts.values() for request_id in plan.ended),
            parts=parts,
        )
        self._step += 1
        return joined

    def update(self, plan: StepPlan, output: StepOutput) -> Sequence[Req]:
        assert isinstance(plan, JoinedPlan), "a plan of another scheduler"
        done: list[Req] = []
        end = 0
        for replica, part in plan.parts.items():
            start, end = end, end + len(part.windows)
            # Rows of the head are counted for the step as a whole; no scheduler asks for its own.
            own = StepOutput(decisions=output.decisions[start:end], head_rows=output.head_rows)
            done += self._schedulers[replica].update(part, own)
        for request in done:
            self._forget(request.request_id)
        return done

    def has_work(self) -> bool:
        return bool(self._homes)

    def check_integrity(self) -> None:
        for replica, scheduler in enumerate(self._schedulers):
            scheduler.check_integrity()
            here = [weight for home, weight in self._homes.values() if home == replica]
            assert scheduler.has_work() == bool(here), "a request is lost"
            assert self._load[replica] == sum(here), "a replica's load is wrong"

    def _forget(self, request_id: int) -> None:
        replica, weight = self._homes.pop(request_id)
        self._load[replica] -= weight


class ReplicaExecutor:
    """An executor of executors: each replica's part of a plan runs on a thread of its own."""

    def __init__(self, executors: Sequence[Executor]) -> None:
        self._executors = tuple(executors)
        self._threads = ThreadPoolExecutor(len(self._executors), thread_name_prefix="diffulex-replica")
        self._running: list[Future[Any]] = []
        self._owner = os.getpid()
        self._work: Callable[[], None] | None = None

    @property
    def vocab_size(self) -> int:
        return self._executors[0].vocab_size

    def capacity(self) -> Capacity:
        return Capacity.least(self._together([executor.capacity for executor in self._executors]))

    def allocate(self, num_pages: int) -> None:
        self._together([partial(executor.allocate, num_pages) for executor in self._executors])

    def execute(self, plan: StepPlan) -> StepOutput:
        assert isinstance(plan, JoinedPlan), "a plan of another scheduler"
        outputs = self._together(
            [partial(self._executors[replica].execute, part) for replica, part in plan.parts.items()], self._work
        )
        return StepOutput(
            decisions=tuple(decision for output in outputs for decision in output.decisions),
            head_rows=sum(output.head_rows for output in outputs),
            stages=_of_the_slowest(outputs),
            how=min((output.how for output in outputs), key=_HOW.index),
        )

    def at_leisure(self, work: Callable[[], None]) -> None:
        """See `LeisurelyRunner`; the replicas have no part in it."""
        self._work = work

    def start_profile(self, recording: Recording) -> None:
        """See `ProfiledExecutor`; replicas that cannot be profiled are left out."""
        self._together([partial(executor.start_profile, recording) for executor in self._profiled])

    def stop_profile(self) -> tuple[Path, ...]:
        return tuple(chain(*self._together([executor.stop_profile for executor in self._profiled])))

    @property
    def _profiled(self) -> list[ProfiledExecutor]:
        return [executor for executor in self._executors if isinstance(executor, ProfiledExecutor)]

    def close(self) -> None:
        with ThreadPoolExecutor(len(self._executors)) as threads:  # the others may be busy with a call that ends here
            closed = [threads.submit(executor.close) for executor in self._executors]
        self._threads.shutdown()
        for each in closed:
            each.result()

    def _together(self, calls: Sequence[Callable[[], T]], meanwhile: Callable[[], None] | None = None) -> list[T]:
        """The results of all calls, or the first error; `meanwhile` is called while they run.

        After an error or an interrupt calls may still run; they are waited for before the next ones.
        """
        refuse_fork(self._owner)
        wait(self._running)
        futures = [self._threads.submit(call) for call in calls]
        self._running = list(futures)
        if meanwhile is not None:
            meanwhile()
        wait(futures, return_when=FIRST_EXCEPTION)
        for future in futures:
            if future.done() and future.exception() is not None:
                future.result()
        return [future.result() for future in futures]


def _of_the_slowest(outputs: Sequence[StepOutput]) -> StageSeconds | None:
    """The stages of the replica that the others waited for."""
    said = [output.stages for output in outputs if output.stages is not None]
    return max(said, key=lambda stages: stages.total, default=None)
