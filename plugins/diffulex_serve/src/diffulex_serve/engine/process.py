"""An engine in a process of its own: ZeroMQ carries msgpack, and the process ends with its parent."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import zmq
import zmq.asyncio

from diffulex_serve.engine.client import Client
from diffulex_serve.engine.errors import EngineDied
from diffulex_serve.engine.messages import Close, Command, Event
from diffulex_serve.engine.spec import EngineSpec
from diffulex_serve.engine.wire import decode_events, encode
from diffulex_serve.logs import LogFormat

_log = logging.getLogger(__name__)

LONGEST_IPC_PATH = 100
"""Bytes; operating systems allow a few more."""
UNTOLD_GRACE = 2.0
"""Seconds in which a process ends whose pipe was closed: it has nothing to finish."""


def process_client(
    spec: EngineSpec,
    *,
    grace: float = 10.0,
    stall_timeout: float | None = None,
    load_timeout: float | None = None,
    log_format: LogFormat = "text",
) -> Client:
    """A client of an engine in a new process, which the client ends."""
    transport = ProcessTransport(spec, grace=grace, log_format=log_format)
    return Client(transport, stall_timeout=stall_timeout, load_timeout=load_timeout)


class ProcessTransport:
    """Starts `diffulex_serve.engine.child` and talks with it.

    The frontend binds a ROUTER socket and the engine connects a DEALER whose identity is a secret of this transport;
    what comes from anybody else is dropped. The secret, and the engine's arguments, go through the child's stdin. That
    pipe stays open: when it closes, the parent is gone, and the child ends.
    """

    def __init__(self, spec: EngineSpec, *, grace: float = 10.0, log_format: LogFormat = "text") -> None:
        """
        Args:
            spec: the engine.
            grace: seconds that the process has to end by itself in `close`.
            log_format: of what the process logs itself.
        """
        self._spec = spec
        self._log_format = log_format
        self._grace = grace
        self._context = zmq.asyncio.Context()
        self._socket: zmq.asyncio.Socket | None = None
        self._secret = secrets.token_hex(16).encode()
        self._folder: Path | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._exit: asyncio.Task[int] | None = None
        self._told = False
        """Whether the engine was told to close."""

    async def open(self) -> None:
        try:
            await self._open()
        except (OSError, zmq.ZMQError) as error:
            message = f"The engine's process could not be started: {error}."
            raise EngineDied(message, kind=type(error).__name__) from error

    async def _open(self) -> None:
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        endpoint = self._bind(self._socket)
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "diffulex_serve.engine.child",
            self._log_format,
            "engine" if self._spec.replica is None else f"engine {self._spec.replica}",
            stdin=asyncio.subprocess.PIPE,
            # A terminal's interrupt is for the server, which tells its engine.
            start_new_session=True,
        )
        assert self._process.stdin is not None
        greeting = f"{endpoint}\n{self._secret.decode()}\n{self._spec.to_json()}\n"
        self._process.stdin.write(greeting.encode())
        self._exit = asyncio.create_task(self._process.wait())

    def send(self, command: Command) -> None:
        assert self._socket is not None
        # Nobody waits for this: the queue has no limit, and a message to an engine that is gone is lost with it.
        sent = asyncio.ensure_future(self._socket.send_multipart([self._secret, encode([command])]))
        sent.add_done_callback(_ignore_closed)
        self._told = self._told or isinstance(command, Close)

    async def receive(self) -> Sequence[Event]:
        assert self._exit is not None
        while True:
            read = asyncio.ensure_future(self._read())
            try:
                await asyncio.wait({read, self._exit}, return_when=asyncio.FIRST_COMPLETED)
                if not read.done():
                    # What the process sent before its end may still be on its way through this process.
                    with contextlib.suppress(TimeoutError):
                        return await asyncio.wait_for(asyncio.shield(read), timeout=0.2)
                    raise EngineDied(_how_it_ended(self._exit.result()))
                return read.result()
            finally:
                if not read.done():
                    read.cancel()

    async def close(self) -> None:
        try:
            await self._end()
        finally:  # also when nobody waits any more
            if self._socket is not None:
                self._socket.close(linger=0)
            self._context.term()
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)

    def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def _end(self) -> None:
        process = self._process
        if process is None or self._exit is None or process.stdin is None:
            return
        grace = self._grace
        if not self._told:
            process.stdin.close()  # an engine that loads, or whose loop is stuck, ends by this
            grace = min(grace, UNTOLD_GRACE)
        try:
            await asyncio.wait_for(asyncio.shield(self._exit), timeout=grace)
        except TimeoutError:
            self.kill()
            await self._exit
        except asyncio.CancelledError:
            self.kill()
            raise
        finally:
            process.stdin.close()

    async def _read(self) -> Sequence[Event]:
        assert self._socket is not None
        while True:
            sender, *parts = await self._socket.recv_multipart()
            if sender == self._secret and len(parts) == 1:
                return decode_events(parts[0])

    def _bind(self, socket: zmq.asyncio.Socket) -> str:
        """An endpoint that nobody else can guess, and where possible nobody else can reach."""
        if zmq.has("ipc"):
            try:
                self._folder = Path(tempfile.mkdtemp(prefix="diffulex-"))
                path = str(self._folder / "engine")
                if len(path.encode()) <= LONGEST_IPC_PATH:
                    socket.bind(f"ipc://{path}")
                    return f"ipc://{path}"
            except (OSError, zmq.ZMQError) as error:
                _log.warning("the engine is reached over 127.0.0.1, as no socket can be made in a folder: %s", error)
        socket.bind("tcp://127.0.0.1:*")
        return socket.getsockopt_string(zmq.LAST_ENDPOINT)


def _ignore_closed(sent: asyncio.Future[Any]) -> None:
    if not sent.cancelled():
        sent.exception()


def _how_it_ended(status: int) -> str:
    how = f"was ended by signal {-status}" if status < 0 else f"exited with status {status}"
    return f"The engine's process {how}. Its log says more."
