"""Answers that are sent while they are made, and clients that leave before the end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import Any, TypeVar

from fastapi import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from diffulex_core.plugin import DiffulexError
from diffulex_serve.http.desk import Reply
from diffulex_serve.http.errors import ApiError, as_api_error, json_bytes
from diffulex_serve.stream.protocol import Frame

_log = logging.getLogger(__name__)

T = TypeVar("T")
GONE = 499
"""Status in logs when the client left; nobody reads it."""


class EventStream(Response):
    """Server-sent events: each item is a `data:` line of JSON, and `[DONE]` comes last.

    The stack is closed when the stream ends, however it does; closing it aborts what is not done. A client that leaves
    ends the stream at once, and one that does not read ends it when its time is over.
    """

    media_type = "text/event-stream"

    def __init__(self, items: AsyncGenerator[Any, None], stack: AsyncExitStack, *, seconds: float | None) -> None:
        """`seconds`: for all of it; None = no limit."""
        super().__init__(media_type=self.media_type, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._items = items
        self._stack = stack
        self._seconds = seconds
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._stack:
            writing = asyncio.create_task(self._write(send))
            leaving = asyncio.create_task(left(receive))
            try:
                tasks = {writing, leaving}
                await asyncio.wait(tasks, timeout=self._seconds, return_when=asyncio.FIRST_COMPLETED)
                if writing.done():
                    writing.result()
            finally:
                await _ended(writing, leaving)

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async with aclosing(self._items):
                async for item in self._items:
                    await send({"type": "http.response.body", "body": sse(item), "more_body": True})
        except (ApiError, DiffulexError) as error:
            await send({"type": "http.response.body", "body": sse(as_api_error(error).body()), "more_body": True})
        except Exception:  # noqa: BLE001 - the boundary of a request, which reports it
            _log.exception("a stream failed")
            body = sse(as_api_error(RuntimeError()).body())
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})


def sse(item: object) -> bytes:
    """One event."""
    return b"data: " + json_bytes(item) + b"\n\n"


async def left(receive: Receive) -> None:
    """Wait until the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_left(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What the work returns; it is cancelled when the client leaves.

    Raises:
        ApiError: the client left. Nobody reads this.
    """
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(left(request.receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ApiError(GONE, "The client left.", kind="client_closed")
    finally:
        await _ended(working, leaving)


async def interleaved(replies: Sequence[Reply]) -> AsyncGenerator[tuple[int, Frame], None]:
    """The frames of several replies as they come, each with the index of its reply."""
    if len(replies) == 1:
        async for frame in replies[0]:
            yield 0, frame
        return
    arrived: asyncio.Queue[tuple[int, Frame] | None] = asyncio.Queue(maxsize=len(replies))

    async def pump(index: int, reply: Reply) -> None:
        async for frame in reply:
            await arrived.put((index, frame))

    async def all_of_them() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for index, reply in enumerate(replies):
                    group.create_task(pump(index, reply))
        except* Exception:
            await arrived.put(None)
            raise
        await arrived.put(None)

    pumping = asyncio.create_task(all_of_them())
    try:
        while (item := await arrived.get()) is not None:
            yield item
        try:
            await pumping
        except BaseExceptionGroup as group:
            raise _first(group) from None
    finally:
        await _ended(pumping)


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _ended(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait until they are over; their errors were seen or do not matter any more."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
