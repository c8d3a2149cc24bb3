"""One worker process: starting it, talking to it, and making sure that it ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any

import attrs

from diffulex_core.errors import ConfigError, WorkerError

_BOOT = (
    "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from diffulex_core.distributed.serve import main; main(int(sys.argv[2]))"
)
"""An interrupt from the keyboard is the engine's business: it decides when its workers end."""

POLL_SECONDS = 1.0
"""How often a process is looked at that gives no sign; its pipe normally tells at once."""

_EXIT_SECONDS = 10.0


@attrs.define(eq=False)
class WorkerProcess:
    """A fresh interpreter that runs `serve`, apart from the user's program, which it never imports.

    The worker's standard input is a pipe that nobody writes to: it closes when this process ends, however it ends, and
    the worker ends with it. Its standard output goes to standard error, because the output is the user's.
    """

    replica: int
    rank: int
    connection: Connection[Any, Any]
    process: subprocess.Popen[bytes]

    @classmethod
    def start(cls, *, replica: int, rank: int) -> WorkerProcess:
        """Start an interpreter; it waits for its greeting.

        Raises:
            ConfigError: this system cannot.
        """
        if sys.platform == "win32" or not sys.executable:
            needs = "Worker processes need a POSIX system and a Python interpreter (sys.executable)."
            raise ConfigError([f"{needs} Use tensor_parallel_size=1 and data_parallel_size=1."])
        ours, theirs = Pipe()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-c", _BOOT, json.dumps(sys.path), str(theirs.fileno())],
                stdin=subprocess.PIPE,
                stdout=2,
                pass_fds=(theirs.fileno(),),
            )
        return cls(replica=replica, rank=rank, connection=ours, process=process)

    def __str__(self) -> str:
        return f"worker rank {self.rank} of replica {self.replica} (process {self.process.pid})"

    def send(self, message: bytes) -> None:
        """Send a pickled message. Whether the worker still lives shows when its answer is awaited."""
        with suppress(OSError):
            self.connection.send_bytes(message)

    def gone(self) -> bool:
        """Whether the process has ended."""
        return self.process.poll() is not None

    def death(self, doing: str) -> WorkerError:
        """The error that says how the process ended; waits for its end."""
        try:
            code = self.process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        advice = "Close this engine and create a new one."
        if code == -signal.SIGKILL:
            advice = f"Often the system kills what needs too much memory. {advice}"
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
        text = f"{str(self).capitalize()} {how} while {doing}. {advice}"
        return WorkerError(text, rank=self.rank, replica=self.replica, exit_code=code)

    def end(self, *, patience: float) -> None:
        """End the process, by force when it has not ended by itself after `patience` seconds."""
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()


def heard_from(workers: list[WorkerProcess], deadline: float | None) -> list[tuple[WorkerProcess, Any | None]]:
    """Wait until some of the workers speak or die; returns who did, and their messages, None for the dead.

    Args:
        workers: whom to listen to.
        deadline: when to return without hearing anything, on the clock of `time.monotonic`; None = never.
    """
    heard: list[tuple[WorkerProcess, Any | None]] = []
    while not heard and (deadline is None or time.monotonic() < deadline):
        ready = set(wait([worker.connection for worker in workers], POLL_SECONDS))
        for worker in workers:
            gone = worker.gone()
            if worker.connection in ready or (gone and worker.connection.poll()):
                try:
                    heard.append((worker, worker.connection.recv()))
                except (EOFError, ConnectionError):
                    heard.append((worker, None))
            elif gone:
                heard.append((worker, None))
    return heard
