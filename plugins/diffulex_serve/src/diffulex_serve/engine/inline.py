"""An engine in a thread of this process: for tests, notebooks, and servers that are to be one process."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence

from diffulex_core.engine import Diffulex
from diffulex_serve.engine.client import Client
from diffulex_serve.engine.errors import EngineDied
from diffulex_serve.engine.loop import EngineLoop, died
from diffulex_serve.engine.messages import Command, Event

ENGINE_THREAD = "diffulex-engine"
"""Name of the threads that run engines."""
_LOOK_EVERY = 0.005


def inline_client(
    open_engine: Callable[[], Diffulex],
    *,
    grace: float = 60.0,
    stall_timeout: float | None = None,
    load_timeout: float | None = None,
) -> Client:
    """A client of an engine in a thread of its own, which `open_engine` opens and the client closes."""
    transport = InlineTransport(open_engine, grace=grace)
    return Client(transport, stall_timeout=stall_timeout, load_timeout=load_timeout)


class InlineTransport:
    """Messages between an event loop and a thread; nothing is copied."""

    def __init__(self, open_engine: Callable[[], Diffulex], *, grace: float = 60.0) -> None:
        """`grace`: seconds that the thread has to end in `close`."""
        self._open_engine = open_engine
        self._grace = grace
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._events: asyncio.Queue[Sequence[Event] | None] = asyncio.Queue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    async def open(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._serve, name=ENGINE_THREAD, daemon=True)
        self._thread.start()

    def send(self, command: Command) -> None:
        self._commands.put(command)

    async def receive(self) -> Sequence[Event]:
        events = await self._events.get()
        if events is None:
            raise EngineDied("The engine's thread ended.")
        return events

    async def close(self) -> None:
        if self._thread is not None:
            deadline = time.monotonic() + self._grace
            while self._thread.is_alive() and time.monotonic() < deadline:
                await asyncio.sleep(_LOOK_EVERY)
            if self._thread.is_alive():
                raise EngineDied(
                    f"The engine's thread did not end in {self._grace:g} s and cannot be ended by force. Use the "
                    "backend 'process' for an engine that may get stuck."
                )

    def kill(self) -> None:
        """A thread ends with its process and not before."""

    def _serve(self) -> None:
        """What the thread does. Its errors are told to the frontend and go no further."""
        line = _QueueLine(self._commands, self._emit)
        try:
            engine = self._open_engine()
        except Exception as error:  # noqa: BLE001 - the boundary of the thread, which reports it
            self._emit([died(error)])
            self._emit(None)
            return
        try:
            with engine:
                EngineLoop(engine, line).run()
        except Exception as error:  # noqa: BLE001 - the boundary of the thread, which reports it
            self._emit([died(error)])
        finally:
            self._emit(None)

    def _emit(self, events: Sequence[Event] | None) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._events.put_nowait, events)


class _QueueLine:
    """The thread's end."""

    def __init__(self, commands: queue.SimpleQueue[Command], emit: Callable[[Sequence[Event]], None]) -> None:
        self._commands = commands
        self._emit = emit

    def receive(self, *, block: bool) -> Sequence[Command]:
        commands = [self._commands.get()] if block else []
        while True:
            try:
                commands.append(self._commands.get_nowait())
            except queue.Empty:
                return commands

    def send(self, events: Sequence[Event]) -> None:
        self._emit(events)
