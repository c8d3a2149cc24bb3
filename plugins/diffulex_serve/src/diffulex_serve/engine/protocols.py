"""What the server asks of an engine, wherever that runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol

from diffulex_serve.engine.messages import Ended, EngineInfo, Load, Stepped, Submit
from diffulex_serve.engine.status import EngineState, ReplicaStatus


class Answer(Protocol):
    """A request that was accepted: iterate it for what happens, until and with its `Ended`.

    Use it as an async context manager; leaving it before the end aborts the request.
    """

    @property
    def request_id(self) -> str:
        """As it was submitted."""
        ...

    def __aiter__(self) -> AsyncIterator[Stepped | Ended]:
        """Events in order. Steps that nobody read in time arrive as one.

        Raises:
            EngineDied: there will be no end.
        """
        ...

    async def rest(self, seconds: float) -> None:
        """Wait so long, but not beyond the end: what happens meanwhile arrives as one."""
        ...

    async def __aenter__(self) -> Answer: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class EngineClient(Protocol):
    """An engine, or what stands for several. Used from one event loop."""

    @property
    def state(self) -> EngineState:
        """Whether it takes requests."""
        ...

    @property
    def info(self) -> EngineInfo:
        """What the engine is.

        Raises:
            EngineUnavailable: it was never ready.
        """
        ...

    @property
    def load(self) -> Load:
        """The latest news of how busy it is."""
        ...

    @property
    def replicas(self) -> Sequence[ReplicaStatus]:
        """How each engine is; always as many, in the same order."""
        ...

    def on_load(self, listener: Callable[[Load], None]) -> None:
        """Call `listener` with all news from now on; for metrics."""
        ...

    async def start(self) -> EngineInfo:
        """Start the engine and wait until it loaded its model. Once.

        Raises:
            EngineDied: it could not; the message says why.
        """
        ...

    async def submit(self, request: Submit) -> Answer:
        """Hand in a request and wait until the engine takes it. Cancelling this aborts the request.

        Raises:
            RequestRefused: the engine cannot serve it.
            EngineUnavailable: no engine takes requests.
        """
        ...

    async def abort(self, request_id: str) -> bool:
        """End a request now; its pages are free afterwards. False when it is not here (any more).

        Raises:
            EngineUnavailable: there is no engine, and so no request.
        """
        ...

    async def start_profile(self, prefix: str | None = None, config: Mapping[str, Any] | None = None) -> None:
        """Begin a profiler recording. Arguments are those of `Diffulex.start_profile`.

        Raises:
            CallRejected: the engine has no profiler, or the configuration cannot be used.
            EngineUnavailable: there is no engine.
        """
        ...

    async def stop_profile(self) -> list[str]:
        """End the recording; the paths of its files. Raises what `start_profile` does."""
        ...

    async def close(self) -> None:
        """Abort everything and end the engine. Calling it again does nothing."""
        ...

    def kill(self) -> None:
        """End the engine by force, so that a `close` which waits for it is done soon. A thread cannot be ended so."""
        ...
