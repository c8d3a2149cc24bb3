"""A client whose engine is started again when it dies."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import attrs

from diffulex_serve.engine.client import Client
from diffulex_serve.engine.errors import EngineDied, EngineUnavailable
from diffulex_serve.engine.messages import EngineInfo, Load, Submit
from diffulex_serve.engine.protocols import Answer
from diffulex_serve.engine.status import EngineState, ReplicaStatus

_log = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class Backoff:
    """How long to wait before an engine is started again, in seconds.

    Attributes:
        first: after it died once.
        factor: by which each further wait is longer.
        most: no wait is longer.
        calm: an engine that lived so long counts as sound, and the next wait is the first again.
    """

    first: float = 0.5
    factor: float = 2.0
    most: float = 30.0
    calm: float = 60.0

    def waits(self, deaths: int) -> float:
        """The wait after so many deaths in a row, at least one."""
        # The power is bounded, as a server may try for weeks.
        return min(self.most, self.first * self.factor ** min(deaths - 1, 64))


class RestartingClient:
    """An `EngineClient` over one client after the other. Requests of an engine that died are lost, as they say."""

    def __init__(self, make: Callable[[], Client], *, restart: bool = True, backoff: Backoff | None = None) -> None:
        """
        Args:
            make: a client that was not started yet.
            restart: False = an engine that died stays dead.
            backoff: how long it waits; None = as usual.
        """
        self._make = make
        self._restart = restart
        self._backoff = backoff or Backoff()
        self._client = make()
        self._state = EngineState.NEW
        self._info: EngineInfo | None = None
        self._restarts = 0
        self._deaths: Counter[str] = Counter()
        self._last_error: str | None = None
        self._load = Load()
        self._steps_before = 0
        """Steps of the engines before this one, so that numbers of steps always grow."""
        self._listeners: list[Callable[[Load], None]] = []
        self._keeper: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None

    @property
    def state(self) -> EngineState:
        if self._state is EngineState.READY and self._client.state is not EngineState.READY:
            return EngineState.RESTARTING if self._restart else EngineState.FAILED
        return self._state

    @property
    def info(self) -> EngineInfo:
        """Of the engine that runs, or of the one before while it is started again."""
        if self._info is None:
            raise EngineUnavailable("The engine is not ready. Try again later.")
        return self._info

    @property
    def load(self) -> Load:
        return self._load

    @property
    def restarts(self) -> int:
        """How often another engine took the place of one that died."""
        return self._restarts

    @property
    def requests(self) -> Collection[str]:
        """Ids of the requests that were handed in and did not end."""
        return self._client.requests

    @property
    def replicas(self) -> Sequence[ReplicaStatus]:
        [now] = self._client.replicas
        return [
            attrs.evolve(
                now,
                state=self.state,
                load=self._load,
                began=now.began if now.state is EngineState.LOADING else None,
                deaths=dict(self._deaths),
                restarts=self._restarts,
                last_error=self._last_error,
            )
        ]

    def on_load(self, listener: Callable[[Load], None]) -> None:
        self._listeners.append(listener)

    async def start(self) -> EngineInfo:
        """Start the first engine; one that cannot load is not tried again."""
        if self._state is not EngineState.NEW:
            raise RuntimeError("a client starts once")
        self._state = EngineState.LOADING
        self._client.on_load(self._note)
        try:
            self._info = await self._client.start()
        except BaseException as error:  # cancelled or failed: it is not started again
            self._state = EngineState.CLOSED
            if isinstance(error, EngineDied):
                self._note_death(error)
            raise
        self._state = EngineState.READY
        self._keeper = asyncio.create_task(self._keep())
        return self._info

    async def submit(self, request: Submit) -> Answer:
        self._check_ready()
        return await self._client.submit(request)

    async def abort(self, request_id: str) -> bool:
        self._check_ready()
        return await self._client.abort(request_id)

    async def start_profile(self, prefix: str | None = None, config: Mapping[str, Any] | None = None) -> None:
        self._check_ready()
        await self._client.start_profile(prefix, config)

    async def stop_profile(self) -> list[str]:
        self._check_ready()
        return await self._client.stop_profile()

    async def close(self) -> None:
        if self._state is EngineState.CLOSED:
            return
        self._state = EngineState.CLOSED
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        await self._end()

    def kill(self) -> None:
        self._client.kill()

    async def _keep(self) -> None:
        """Put a new engine in the place of each that dies."""
        deaths = 0
        while True:
            began = time.monotonic()
            self._note_death(await self._client.death())
            self._state = EngineState.RESTARTING if self._restart else EngineState.FAILED
            self._tell(attrs.evolve(self._load, requests=0, live=0, pages=0, free_pages=0, cached_pages=0))
            if not self._restart:
                return
            deaths = 1 if time.monotonic() - began >= self._backoff.calm else deaths + 1
            try:
                deaths = await self._replace(deaths)
            except EngineDied as error:
                self._state = EngineState.FAILED
                _log.error("the engine is not started again: %s", error)
                return
            self._restarts += 1
            self._state = EngineState.READY
            _log.warning("the engine is ready again")

    async def _replace(self, deaths: int) -> int:
        """Try until an engine is there; how many deaths there were in a row.

        Raises:
            EngineDied: the old engine does not end, and two would not fit.
        """
        while True:
            await self._end()
            wait = self._backoff.waits(deaths)
            _log.warning("the engine starts again in %.1f s", wait)
            await asyncio.sleep(wait)
            self._steps_before = self._load.step + 1
            self._client, self._ending = self._make(), None
            self._client.on_load(self._note)
            try:
                self._info = await self._client.start()
            except EngineDied as error:
                deaths += 1
                self._note_death(error)
                _log.error("the engine could not start again: %s", error)
            else:
                return deaths

    async def _end(self) -> None:
        """Close the client. Whoever is cancelled meanwhile may call this again to wait for the rest."""
        if self._ending is None:
            self._ending = asyncio.create_task(self._client.close())
        await asyncio.shield(self._ending)

    def _note_death(self, error: EngineDied) -> None:
        self._deaths[error.kind] += 1
        self._last_error = str(error)

    def _note(self, load: Load) -> None:
        self._tell(attrs.evolve(load, step=self._steps_before + load.step))

    def _tell(self, load: Load) -> None:
        self._load = load
        for listener in self._listeners:
            listener(load)

    def _check_ready(self) -> None:
        if self.state is not EngineState.READY:
            raise EngineUnavailable(f"The engine is {self.state.value}. Try again later.")
