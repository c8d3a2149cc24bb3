"""One worker process: starting it, talking to it, and making sure that it ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any

import attrs

from diffulex_core.errors import ConfigError, WorkerError

_BOOT = (
    "import sys; sys.path[:] = sys.argv[2:]; from diffulex_core.distributed.serve import main; main(int(sys.argv[1]))"
)
"""The engine's `sys.path` comes first of all, because an interpreter starts with the current directory in its own."""

POLL_SECONDS = 1.0
"""How often a process is looked at that gives no sign; its pipe normally tells at once."""

START_ANEW = "Close this engine and create a new one."

_EXIT_SECONDS = 10.0


@attrs.define(eq=False)
class WorkerProcess:
    """A fresh interpreter that runs `serve`, apart from the user's program, which it never imports.

    The worker's standard input is a pipe that nobody writes to: it closes when this process ends, however it ends, and
    the worker ends with it. Its standard output goes to standard error, because the output is the user's. It has a
    session of its own, so that an interrupt from the keyboard reaches the engine only, which decides when workers end.
    """

    replica: int
    rank: int
    connection: Connection[Any, Any]
    process: subprocess.Popen[bytes]

    @classmethod
    def start(cls, *, replica: int, rank: int, inherited: Sequence[int] = ()) -> WorkerProcess:
        """Start an interpreter; it waits for its greeting.

        Args:
            replica, rank: which worker it is.
            inherited: descriptors that it has under the same numbers.
        Raises:
            ConfigError: the system allows no further process.
        """
        paths = [path for path in sys.path if isinstance(path, str)]
        try:
            ours, theirs = (Connection(apart(end.detach())) for end in socket.socketpair())
            with theirs:
                process = subprocess.Popen(
                    [sys.executable, "-u", "-c", _BOOT, str(theirs.fileno()), *paths],
                    stdin=subprocess.PIPE,
                    stdout=2 if sys.__stderr__ else subprocess.DEVNULL,
                    stderr=None if sys.__stderr__ else subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(), *inherited),
                    start_new_session=True,
                )
        except OSError as error:
            advice = "Raise the limit that was met, or lower tensor_parallel_size and data_parallel_size."
            raise ConfigError([f"A worker process cannot be started: {error}. {advice}"]) from error
        return cls(replica=replica, rank=rank, connection=ours, process=process)

    def __str__(self) -> str:
        return f"worker rank {self.rank} of replica {self.replica} (process {self.process.pid})"

    def send(self, message: bytes) -> None:
        """Send a pickled message. Whether the worker still lives shows when its answer is awaited."""
        with suppress(OSError):
            self.connection.send_bytes(message)

    def receive(self) -> Any | None:
        """Its next message, or None when it has ended. Call it when `heard_from` names the worker."""
        try:
            # A forked relative of a dead worker may hold the other end of the pipe open.
            return None if self.gone() and not self.connection.poll() else self.connection.recv()
        except (EOFError, ConnectionError):
            return None

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
        advice = START_ANEW
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


def heard_from(workers: list[WorkerProcess], deadline: float) -> list[WorkerProcess]:
    """Wait until some of the workers speak or die; returns which, or none at the deadline.

    Args:
        workers: whom to listen to.
        deadline: when to give up, on the clock of `time.monotonic`.
    """
    heard: list[WorkerProcess] = []
    while not heard and time.monotonic() < deadline:
        ready = wait([worker.connection for worker in workers], POLL_SECONDS)
        heard = [worker for worker in workers if worker.connection in ready or worker.gone()]
    return heard


def check_platform() -> None:
    """Raise a `ConfigError` where worker processes cannot be had at all."""
    if sys.platform == "win32" or not sys.executable:
        needs = "Worker processes need a POSIX system and a Python interpreter (sys.executable)."
        raise ConfigError([f"{needs} Use tensor_parallel_size=1 and data_parallel_size=1."])


def apart(descriptor: int) -> int:
    """The descriptor under a number that is no standard stream's; the old number is closed.

    Where a program has closed its standard streams, the system gives their numbers to whatever is opened next, and a
    new process gets streams of its own in their place.
    """
    import fcntl  # not on every platform

    copy = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(descriptor)
    return copy
