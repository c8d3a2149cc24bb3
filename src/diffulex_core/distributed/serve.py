"""The program of a worker process: find the plugins, load a share of the network, execute what the engine sends."""

from __future__ import annotations

import faulthandler
import logging
import os
import pickle
import select
import signal
import sys
import threading
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from diffulex_core.discovery import CORE, find_candidates
from diffulex_core.distributed.communicator import ALONE, Communicator
from diffulex_core.distributed.messages import Answer, Assignment, Call, Failure, Greeting, Manifest
from diffulex_core.errors import PluginError
from diffulex_core.host import Host

if TYPE_CHECKING:
    from pathlib import Path

    from diffulex_core.profiling.session import ProfileSession, Recording
    from diffulex_core.types import StepOutput, StepPlan
    from diffulex_core.worker import Worker

LOST = 70
"""Exit status of a worker whose engine is gone."""


def main(descriptor: int) -> None:
    """Serve one engine over the pipe `descriptor`, until it says that it is over or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the engine decides what an interrupt ends
    faulthandler.enable()
    threading.Thread(target=_watch_engine, args=(os.getppid(),), daemon=True).start()
    connection: Connection[Any, Any] = Connection(descriptor)
    status = 0
    try:
        with connection, ExitStack() as resources:
            _work(connection, resources)
    except (EOFError, ConnectionError):
        status = LOST
    logging.shutdown()
    sys.stderr.flush()
    os._exit(status)  # taking torch apart in good order would cost as much time as loading it did


def _work(connection: Connection[Any, Any], resources: ExitStack) -> None:
    greeting: Greeting = connection.recv()
    assignment = connection.recv_bytes()
    logging.basicConfig(
        format=f"%(levelname)s: replica {greeting.replica} rank {greeting.rank}: %(message)s",
        level=logging.ERROR if greeting.rank or greeting.replica else logging.WARNING,
    )
    logging.captureWarnings(True)  # one worker's are enough
    try:
        worker = _load(greeting, assignment, resources)
    except Exception as error:  # noqa: BLE001 - the engine raises it
        connection.send(Failure.of(0, error, replica=greeting.replica, rank=greeting.rank))
    else:
        connection.send(Answer(serial=0))
        _serve(connection, greeting, worker, alone=worker.tp.size == 1)


def same_plugins(manifest: Manifest) -> Host:
    """The host of this process, with the plugins of another process's manifest.

    Raises:
        PluginError: the plugins that are found here are others.
    """
    wanted = {plugin for plugin, _, _ in manifest}
    installed = {CORE.plugin, *(candidate.provenance.plugin for candidate in find_candidates(()))}
    logging.disable(logging.WARNING)  # the engine has said all of it
    host = Host.discover(sorted(wanted & installed), environ={})
    logging.disable(logging.NOTSET)
    found = host.manifest()
    if found != manifest:
        only_there, only_here = sorted(set(manifest) - set(found)), sorted(set(found) - set(manifest))
        raise PluginError(
            f"A worker process found other plugins than the engine. Only in the engine: {_listing(only_there)}. "
            f"Only in the worker: {_listing(only_here)}. Restart the program after installing plugins."
        )
    return host


def _load(greeting: Greeting, assignment: bytes, resources: ExitStack) -> Worker:
    host = same_plugins(greeting.manifest)

    import torch

    from diffulex_core.worker import Worker

    task: Assignment = pickle.loads(assignment)
    if task.threads is not None:
        torch.set_num_threads(task.threads)
    if task.device.type == "cuda":
        torch.cuda.set_device(task.device)
    tp: Communicator = ALONE
    if task.meeting is not None:
        from diffulex_core.distributed.torch_group import join

        group = join(task.meeting, greeting.rank, task.device, task.listener)
        resources.callback(group.close)
        tp = group
    worker = Worker(task.blueprint, host=host, device=task.device, tp=tp, sharers=task.sharers, progress=task.progress)
    resources.callback(worker.close)
    return worker


class ProfiledWorker:
    """A worker and the recording of its process, if one runs."""

    def __init__(self, worker: Worker, *, rank: int) -> None:
        """`rank` counts the engine's processes, those of other replicas included."""
        self.worker = worker
        self._component = f"model_runner.rank{rank}"
        self._session: ProfileSession | None = None

    def execute(self, plan: StepPlan) -> StepOutput:
        output = self.worker.execute(plan)
        if self._session is not None and not self._session.step():
            self.worker.stop_profile()
        return output

    def start(self, recording: Recording) -> None:
        from diffulex_core.profiling.session import ProfileSession

        self.worker.start_profile(recording)
        self._session = ProfileSession(recording, self._component)

    def stop(self) -> tuple[Path, ...]:
        """The files that were written."""
        session, self._session = self._session, None
        self.worker.stop_profile()
        return () if session is None else session.stop()


def _serve(connection: Connection[Any, Any], greeting: Greeting, worker: Worker, *, alone: bool) -> None:
    profiled = ProfiledWorker(worker, rank=greeting.replica * worker.tp.size + greeting.rank)
    while True:
        call: Call | None = connection.recv()
        if call is None:
            return
        try:
            value = _perform(profiled, call)
            kept_back = call.method == "execute" and greeting.rank > 0
            answer = pickle.dumps(Answer(serial=call.serial, value=None if kept_back else value), protocol=5)
        except Exception as error:  # noqa: BLE001 - the engine raises it
            connection.send(Failure.of(call.serial, error, replica=greeting.replica, rank=greeting.rank))
            if not alone:
                return  # in the middle of a step the ranks cannot find together again
        else:
            connection.send_bytes(answer)


def _perform(profiled: ProfiledWorker, call: Call) -> object:
    match call.method:
        case "capacity":
            return profiled.worker.capacity(*call.arguments)
        case "allocate":
            profiled.worker.allocate(*call.arguments)
            return None
        case "execute":
            return profiled.execute(*call.arguments)
        case "start_profile":
            profiled.start(*call.arguments)
            return None
        case "stop_profile":
            return profiled.stop()


def _watch_engine(engine: int) -> None:
    """End this process, whatever it is waiting for, when the engine's process is gone.

    A file that a forked relative of the engine holds open never ends; therefore the parent is looked at, too.
    """
    while os.getppid() == engine:
        if select.select([sys.stdin], [], [], 1.0)[0]:
            break
    os._exit(LOST)


def _listing(plugins: list[tuple[str, str, str]]) -> str:
    return ", ".join(f"{plugin} ({dist} {version})".replace(" )", ")") for plugin, dist, version in plugins) or "none"
