"""The HTTP server below the application: uvicorn, without its signals, and without connections that keep it waiting."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from weakref import WeakKeyDictionary

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from diffulex_serve.options import LimitsSection

UNREAD_GRACE = 30.0
"""Seconds that a client has to read what is left of its last answer before its connection is broken off."""
_TICKS_PER_SECOND = 10


class HttpServer(uvicorn.Server):
    """Serves an application, and leaves signals to whoever runs it."""

    def __init__(self, app: FastAPI, limits: LimitsSection) -> None:
        # h11 bounds the size of a request's head; the application has no web sockets.
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=1,
            )
        )
        self._idle = IdleConnections(limits.head_timeout)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do nothing."""
        yield

    async def on_tick(self, counter: int) -> bool:
        """Called some times a second; whether the server should end."""
        if counter % _TICKS_PER_SECOND == 0:
            connections = (each for each in self.server_state.connections if isinstance(each, H11Protocol))
            self._idle.close(connections, time.monotonic())
        return await super().on_tick(counter)


class IdleConnections:
    """Closes connections on which no request is being served for too long.

    uvicorn closes one that is silent behind an answer, but would wait for ever for a head that never ends.
    """

    def __init__(self, seconds: float) -> None:
        """`seconds`: in which a request must begin, head and all."""
        self._seconds = seconds
        self._since: WeakKeyDictionary[H11Protocol, float] = WeakKeyDictionary()

    def close(self, connections: Iterable[H11Protocol], now: float) -> None:
        """Close those among these, which are all there are, whose time is over at `now`."""
        for connection in list(connections):
            if connection.cycle is not None and not connection.cycle.response_complete:
                self._since.pop(connection, None)
                continue
            idle = now - self._since.setdefault(connection, now)
            if idle >= self._seconds + UNREAD_GRACE:
                connection.transport.abort()
            elif idle >= self._seconds:
                connection.transport.close()
