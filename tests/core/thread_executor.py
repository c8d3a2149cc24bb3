"""An executor whose ranks are threads of this process, so that whole engines run divided without spawning anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType

import numpy as np
import torch

from diffulex_core.distributed import Communicator
from diffulex_core.host import Host
from diffulex_core.plugin import Component, hookimpl
from diffulex_core.sizing import Capacity
from diffulex_core.testing.thread_group import ThreadGroup
from diffulex_core.types import StepOutput, StepPlan
from diffulex_core.worker import Blueprint, Worker


class ThreadExecutor:
    """The workers of one copy of a network, each on a thread; all of them must decide alike."""

    def __init__(
        self,
        blueprint: Blueprint,
        *,
        host: Host,
        devices: Sequence[torch.device],
        replica: int = 0,
        sharers: int = 1,
        progress: bool = False,
    ) -> None:
        self._group = ThreadGroup(len(devices))

        def load(tp: Communicator) -> Worker:
            return Worker(blueprint, host=host, device=devices[tp.rank], tp=tp)

        self._workers = self._group.run(load)

    @property
    def vocab_size(self) -> int:
        return self._workers[0].vocab_size

    def capacity(self) -> Capacity:
        return Capacity.least([worker.capacity() for worker in self._workers])

    def allocate(self, num_pages: int) -> None:
        self._group.run(lambda tp: self._workers[tp.rank].allocate(num_pages))

    def execute(self, plan: StepPlan) -> StepOutput:
        first, *others = self._group.run(lambda tp: self._workers[tp.rank].execute(plan))
        for other in others:
            for mine, theirs in zip(first.decisions, other.decisions, strict=True):
                assert np.array_equal(mine.tokens, theirs.tokens), "ranks decide differently"
                assert mine.confidence.tobytes() == theirs.confidence.tobytes()
        return first

    def close(self) -> None:
        for worker in self._workers:
            worker.close()


def threaded_host() -> Host:
    """The installed plugins, and this executor under the name "threads"."""

    @hookimpl
    def diffulex_register_components(register: Callable[[Component], None]) -> None:
        register(Component(kind="executor", name="threads", factory="tests.core.thread_executor:ThreadExecutor"))

    module = ModuleType("threads_plugin")
    vars(module)["diffulex_register_components"] = diffulex_register_components
    return Host.discover(extra=[module])
