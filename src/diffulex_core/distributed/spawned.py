"""The executor that runs each rank in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path

import torch

from diffulex_core.devices import choose_dtype
from diffulex_core.distributed.communicator import Seat
from diffulex_core.distributed.group import WorkerGroup
from diffulex_core.distributed.messages import Assignment
from diffulex_core.distributed.process import check_platform
from diffulex_core.distributed.torch_group import Rendezvous, choose_library, listen
from diffulex_core.errors import PluginError
from diffulex_core.host import Host
from diffulex_core.profiling.session import Recording
from diffulex_core.sizing import Capacity
from diffulex_core.types import StepOutput, StepPlan
from diffulex_core.worker import Blueprint, build_network, choose_backend, decidable_tokens


class SpawnedExecutor:
    """A tensor-parallel group of worker processes, or a single one. An `Executor`.

    The constructor checks that the network can be divided, then starts the processes; the first call waits until they
    have loaded. Every rank gets every plan; the first rank's output is the group's.
    """

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
        """
        Args:
            blueprint: what to build.
            host: the plugins of this process; workers refuse to start with others.
            devices: one for each rank.
            replica: number of this group among those of the engine.
            sharers: processes of the engine that share a device's memory.
            progress: show a progress bar while weights are loaded.
        Raises:
            ConfigError: the network cannot be divided, or the processes cannot be started.
            IncompatibleError: no attention backend serves the divided network.
            PluginError: a plugin was handed over as a module, so that workers could not find it.
        """
        check_platform()
        _refuse_given(host)
        dtype = choose_dtype(blueprint.config.model.dtype, blueprint.checkpoint, devices[0])
        network = build_network(blueprint, host=host, dtype=dtype, device=devices[0], tp=Seat(0, len(devices)))
        choose_backend(blueprint.config, network, host=host, dtype=dtype, device=devices[0])
        self._vocab_size = decidable_tokens(blueprint, network)

        parallel, meeting, listener = blueprint.config.parallel, None, None
        timeout = float(parallel.distributed_timeout_seconds)
        with ExitStack() as ours:
            if len(devices) > 1:
                library = choose_library(parallel.distributed_backend, devices[0])
                port = parallel.master_port + replica if parallel.master_port else 0
                listener, address, port = listen(parallel.master_addr, port)
                ours.enter_context(listener)
                meeting = Rendezvous(address=address, port=port, size=len(devices), backend=library, timeout=timeout)
            threads = max(1, torch.get_num_threads() // sharers) if devices[0].type == "cpu" else None
            assignments = [
                Assignment(
                    blueprint=blueprint,
                    device=device,
                    meeting=meeting,
                    listener=listener.fileno() if listener is not None and rank == 0 else None,
                    sharers=sharers,
                    threads=threads,
                    progress=progress and rank == 0,
                )
                for rank, device in enumerate(devices)
            ]
            self._work: Callable[[], None] | None = None
            self._group = WorkerGroup(assignments, replica=replica, manifest=host.manifest(), timeout=timeout)

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    def capacity(self) -> Capacity:
        return Capacity.least(self._group.call("capacity"))

    def allocate(self, num_pages: int) -> None:
        self._group.call("allocate", num_pages)

    def execute(self, plan: StepPlan) -> StepOutput:
        output: StepOutput = self._group.call("execute", plan, meanwhile=self._work)[0]
        return output

    def at_leisure(self, work: Callable[[], None]) -> None:
        """See `LeisurelyRunner`; the workers have no part in it."""
        self._work = work

    def start_profile(self, recording: Recording) -> None:
        """Record every process of the group; see `ProfiledExecutor`."""
        self._group.call("start_profile", recording)

    def stop_profile(self) -> tuple[Path, ...]:
        return tuple(chain(*self._group.call("stop_profile")))

    def close(self) -> None:
        self._group.close()


def _refuse_given(host: Host) -> None:
    given = [record.provenance.plugin for record in host.records if record.given]
    if given:
        raise PluginError(
            f"Worker processes cannot find {', '.join(map(repr, given))}, which came as a module. Install it as a "
            "package with an entry point, or use tensor_parallel_size=1 and data_parallel_size=1."
        )
