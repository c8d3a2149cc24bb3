"""The one way in which the server talks to an engine, wherever that runs."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from diffulex_core.plugin import DiffulexError
from diffulex_serve.engine.errors import CallRejected, EngineDied, EngineUnavailable, RequestRefused
from diffulex_serve.engine.mailbox import Mailbox
from diffulex_serve.engine.messages import (
    Abort,
    Accepted,
    Answered,
    CallFailed,
    Close,
    Command,
    Died,
    Ended,
    EngineInfo,
    Event,
    Load,
    Loading,
    Ready,
    Refused,
    StartProfile,
    Stepped,
    StopProfile,
    Submit,
)
from diffulex_serve.engine.protocols import Answer
from diffulex_serve.engine.status import EngineState, ReplicaStatus
from diffulex_serve.engine.transport import Transport
from diffulex_serve.engine.watchdog import Watchdog

_log = logging.getLogger(__name__)


class Client:
    """An `EngineClient` over a transport: it routes what comes to those who wait for it."""

    def __init__(
        self, transport: Transport, *, stall_timeout: float | None = None, load_timeout: float | None = None
    ) -> None:
        """
        Args:
            transport: starts the engine and carries messages.
            stall_timeout: seconds that an engine with work may say nothing; then it counts as dead. None = any.
            load_timeout: seconds that it may take until it is ready; then it counts as dead. None = any.
        """
        self._transport = transport
        self._watchdog = Watchdog(stall_timeout, busy=self._is_busy, silent=lambda: self._stall(stall_timeout))
        self._load_timeout = load_timeout
        self._state = EngineState.NEW
        self._info: EngineInfo | None = None
        self._load = Load()
        self._stepped_at: float | None = None
        self._began: float | None = None
        self._doing = ""
        self._died: EngineDied | None = None
        self._listeners: list[Callable[[Load], None]] = []
        self._ready: asyncio.Future[EngineInfo] | None = None
        self._death: asyncio.Future[EngineDied] | None = None
        self._starting: dict[str, asyncio.Future[None]] = {}
        self._open: dict[str, Mailbox] = {}
        self._calls: dict[int, asyncio.Future[bool | list[str] | None]] = {}
        self._numbers = itertools.count()
        self._router: asyncio.Task[None] | None = None
        self._background: set[asyncio.Task[None]] = set()

    @property
    def state(self) -> EngineState:
        return self._state

    @property
    def info(self) -> EngineInfo:
        if self._info is None:
            raise EngineUnavailable("The engine is not ready. Try again later.")
        return self._info

    @property
    def load(self) -> Load:
        return self._load

    @property
    def replicas(self) -> Sequence[ReplicaStatus]:
        died = self._died
        return (
            ReplicaStatus(
                state=self._state,
                load=self._load,
                stepped_at=self._stepped_at,
                requests=len(self._open),
                doing=self._doing,
                began=self._began,
                deaths={} if died is None else Counter([died.kind]),
                last_error=None if died is None else str(died),
            ),
        )

    def on_load(self, listener: Callable[[Load], None]) -> None:
        self._listeners.append(listener)

    @property
    def requests(self) -> tuple[str, ...]:
        """Ids of the requests that were handed in and did not end."""
        return tuple(self._open)

    async def death(self) -> EngineDied:
        """Wait until the engine, which was started, dies; says why."""
        assert self._death is not None
        return await asyncio.shield(self._death)

    async def start(self) -> EngineInfo:
        if self._state is not EngineState.NEW:
            raise RuntimeError("a client starts once")
        self._state = EngineState.LOADING
        self._ready = asyncio.get_running_loop().create_future()
        self._death = asyncio.get_running_loop().create_future()
        self._began = time.monotonic()
        limit = asyncio.timeout(self._load_timeout)
        try:
            async with limit:
                await self._transport.open()
                self._router = asyncio.create_task(self._route())
                return await self._ready
        except BaseException as error:  # an engine that does not come up leaves nothing behind, cancelled or failed
            late = self._too_slow() if isinstance(error, TimeoutError) and limit.expired() else None
            await self.close()
            if late is not None:
                raise late from None
            raise

    async def submit(self, request: Submit) -> Answer:
        self._check_ready()
        request_id = request.request_id
        if request_id in self._open:
            raise RequestRefused(
                f"A request with the id {request_id!r} is being served; choose another id.",
                kind="RequestError",
                user_error=True,
            )
        self._watchdog.expect()
        taken = self._starting[request_id] = asyncio.get_running_loop().create_future()
        mailbox = self._open[request_id] = Mailbox()
        try:
            self._transport.send(request)
            await taken
        except asyncio.CancelledError:
            self._forget(request_id)
            raise
        except BaseException:  # what was not taken is not open, whatever the reason
            self._open.pop(request_id, None)
            raise
        finally:
            self._starting.pop(request_id, None)
        return _Answer(self, request_id, mailbox)

    async def abort(self, request_id: str) -> bool:
        return bool(await self._call(lambda number: Abort(call=number, request_id=request_id)))

    async def start_profile(self, prefix: str | None = None, config: Mapping[str, Any] | None = None) -> None:
        await self._call(lambda number: StartProfile(call=number, prefix=prefix, config=config))

    async def stop_profile(self) -> list[str]:
        paths = await self._call(lambda number: StopProfile(call=number))
        return paths if isinstance(paths, list) else []

    async def close(self) -> None:
        if self._state is EngineState.CLOSED:
            return
        was, self._state = self._state, EngineState.CLOSED
        if was is EngineState.READY:
            self._transport.send(Close())
        self._watchdog.stop()
        await self._transport.close()
        if self._router is not None:
            self._router.cancel()
            await asyncio.gather(self._router, return_exceptions=True)
        self._fail(EngineUnavailable("The engine was closed."))

    def kill(self) -> None:
        self._transport.kill()

    def forget(self, request_id: str) -> None:
        """Stop listening to a request that was accepted, and abort it unless it ended."""
        if request_id in self._open:
            self._forget(request_id)

    def _forget(self, request_id: str) -> None:
        self._open.pop(request_id, None)
        if self._state is EngineState.READY:
            task = asyncio.create_task(self._abort_quietly(request_id))
            self._background.add(task)
            task.add_done_callback(self._background.discard)

    async def _abort_quietly(self, request_id: str) -> None:
        try:
            await self.abort(request_id)
        except EngineUnavailable:
            _log.debug("request %s is gone with its engine", request_id)

    async def _call(self, make: Callable[[int], Command]) -> bool | list[str] | None:
        self._check_ready()
        self._watchdog.expect()
        number = next(self._numbers)
        answer: asyncio.Future[bool | list[str] | None] = asyncio.get_running_loop().create_future()
        self._calls[number] = answer
        self._transport.send(make(number))
        try:
            return await answer
        finally:
            del self._calls[number]

    def _check_ready(self) -> None:
        if self._state is not EngineState.READY:
            raise EngineUnavailable(f"The engine is {self._state.value}. Try again later.")

    async def _route(self) -> None:
        try:
            while True:
                events = await self._transport.receive()
                self._watchdog.heard()
                for event in events:
                    self._take(event)
        except DiffulexError as error:
            self._lose(error if isinstance(error, EngineDied) else EngineDied(str(error), kind=type(error).__name__))

    def _take(self, event: Event) -> None:
        match event:
            case Ready():
                self._info, self._state, self._doing = event.info, EngineState.READY, ""
                if self._ready is not None and not self._ready.done():
                    self._ready.set_result(event.info)
            case Loading():
                self._doing = event.doing
            case Load():
                if event.step != self._load.step:
                    self._stepped_at = time.monotonic()
                self._load = event
                for listener in self._listeners:
                    listener(event)
            case Accepted():
                _settle(self._starting.get(event.request_id), None)
            case Refused():
                refusal = RequestRefused(event.message, kind=event.kind, user_error=event.user_error)
                _settle(self._starting.get(event.request_id), refusal)
            case Stepped():
                if event.request_id in self._open:
                    self._open[event.request_id].put(event)
            case Ended():
                if event.request_id in self._open:
                    self._open.pop(event.request_id).put(event)
            case Answered():
                answer = self._calls.get(event.call)
                if answer is not None and not answer.done():
                    answer.set_result(event.value)
            case CallFailed():
                answer = self._calls.get(event.call)
                if answer is not None and not answer.done():
                    answer.set_exception(CallRejected(event.message, user_error=event.user_error))
            case Died():
                self._lose(EngineDied(event.message, kind=event.kind))

    def _lose(self, error: EngineDied) -> None:
        """The engine is gone: tell everybody who waits."""
        if self._state in (EngineState.FAILED, EngineState.CLOSED):
            return
        self._state, self._died, self._doing = EngineState.FAILED, error, ""
        self._watchdog.stop()
        _log.error("the engine died: %s: %s", error.kind, error)
        if self._death is not None and not self._death.done():
            self._death.set_result(error)
        self._fail(error)

    def _too_slow(self) -> EngineDied:
        message = f"The engine did not load in {self._load_timeout:g} s; load_timeout allows no more."
        said = f" What it did last: {self._doing}." if self._doing else ""
        _log.error("%s%s", message, said)
        self._died = EngineDied(f"{message}{said}", kind="EngineSlow")
        return self._died

    def _is_busy(self) -> bool:
        return bool(self._open or self._calls)

    def _stall(self, seconds: float | None) -> None:
        message = f"The engine has work, but said nothing for {seconds:g} s; stall_timeout allows no more."
        self._lose(EngineDied(message, kind="EngineStuck"))

    def _fail(self, error: EngineUnavailable) -> None:
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(error)
            self._ready.exception()  # marks it as seen, should nobody wait any more
        for taken in self._starting.values():
            _settle(taken, error)
        for mailbox in self._open.values():
            mailbox.fail(error)
        self._open.clear()
        for answer in self._calls.values():
            if not answer.done():
                answer.set_exception(error)


class _Answer:
    """An accepted request of a `Client`."""

    def __init__(self, client: Client, request_id: str, mailbox: Mailbox) -> None:
        self._client = client
        self._request_id = request_id
        self._mailbox = mailbox

    @property
    def request_id(self) -> str:
        return self._request_id

    async def __aiter__(self) -> AsyncIterator[Stepped | Ended]:
        while True:
            event = await self._mailbox.get()
            yield event
            if isinstance(event, Ended):
                return

    async def rest(self, seconds: float) -> None:
        await self._mailbox.rest(seconds)

    async def __aenter__(self) -> Answer:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._client.forget(self._request_id)


def _settle(taken: asyncio.Future[None] | None, error: BaseException | None) -> None:
    if taken is None or taken.done():
        return
    if error is None:
        taken.set_result(None)
    else:
        taken.set_exception(error)
