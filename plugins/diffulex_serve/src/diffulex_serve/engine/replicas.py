"""Several engines behind one client: each request goes where its prompt was seen, or where there is least to do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Protocol

import attrs

from diffulex_serve.engine.errors import EngineUnavailable
from diffulex_serve.engine.messages import EngineInfo, Load, Submit
from diffulex_serve.engine.prefixes import Prefix, SeenPrefixes, prefix_of
from diffulex_serve.engine.protocols import Answer, EngineClient
from diffulex_serve.engine.status import EngineState, ReplicaStatus

_HOPE = (EngineState.NEW, EngineState.LOADING, EngineState.RESTARTING, EngineState.FAILED)
"""States in which no requests are taken, the most hopeful first."""


class Replica(EngineClient, Protocol):
    """A client of one engine, which may be another one after a while."""

    @property
    def requests(self) -> Collection[str]:
        """Ids of the requests that were handed in and did not end."""
        ...

    @property
    def restarts(self) -> int:
        """How often another engine, whose cache was empty, took the place of one that died."""
        ...


@attrs.define(kw_only=True, eq=False)
class _Place:
    """A replica and what is remembered of it."""

    client: Replica
    seen: SeenPrefixes = attrs.field(factory=SeenPrefixes)
    restarts: int = 0
    load: Load = Load()
    chosen: int = 0
    """When it was chosen last, counted in requests."""


class ReplicatedClient:
    """An `EngineClient` over replicas of one engine. It takes requests while one of them does.

    A request that was handed to a replica that dies is not handed to another one: it may be what killed it.
    """

    def __init__(self, replicas: Sequence[Replica], *, slack: int | None = None) -> None:
        """
        Args:
            replicas: that were not started yet.
            slack: requests that a replica may have more than the one with the fewest and still be chosen for what is
                in its cache; None = a quarter of those that it can run at a time.
        """
        self._places = [_Place(client=replica) for replica in replicas]
        self._slack = slack
        self._load = Load()
        self._listeners: list[Callable[[Load], None]] = []
        self._count = 0
        self._closed = False
        for place in self._places:
            place.client.on_load(partial(self._note, place))

    @property
    def state(self) -> EngineState:
        """Ready while a replica is."""
        if self._closed:
            return EngineState.CLOSED
        states = {place.client.state for place in self._places}
        if EngineState.READY in states:
            return EngineState.READY
        return next((state for state in _HOPE if state in states), EngineState.CLOSED)

    @property
    def info(self) -> EngineInfo:
        """What all replicas are, with the requests and pages of those that are ready; of all where none is."""
        places = self._ready() or self._places
        told = [place.client.info for place in places]
        return attrs.evolve(
            told[0],
            max_num_reqs=sum(each.max_num_reqs for each in told),
            num_pages=sum(each.num_pages for each in told),
        )

    @property
    def load(self) -> Load:
        """Sums over the replicas; step, seconds, rows and stages are of the latest step of any."""
        return self._load

    @property
    def replicas(self) -> Sequence[ReplicaStatus]:
        return [status for place in self._places for status in place.client.replicas]

    def on_load(self, listener: Callable[[Load], None]) -> None:
        self._listeners.append(listener)

    async def start(self) -> EngineInfo:
        starting = [asyncio.create_task(place.client.start()) for place in self._places]
        try:
            await asyncio.gather(*starting)
        except BaseException:  # cancelled or failed: the others end too
            for task in starting:
                task.cancel()
            await asyncio.gather(*starting, return_exceptions=True)
            await self.close()
            raise
        return self.info

    async def submit(self, request: Submit) -> Answer:
        prefix = prefix_of(request.prompt)
        place = self._holder(request.request_id) or self._choose(prefix)
        self._count += 1
        place.chosen = self._count
        place.seen.note(prefix)
        return await place.client.submit(request)

    async def abort(self, request_id: str) -> bool:
        place = self._holder(request_id)
        if place is not None:
            return await place.client.abort(request_id)
        self._check_ready()
        return False

    async def start_profile(self, prefix: str | None = None, config: Mapping[str, Any] | None = None) -> None:
        """Begin a recording on all replicas that are ready; the names of its files say of which each is."""
        self._check_ready()
        name = prefix or (config or {}).get("run_id") or datetime.now().strftime("%Y%m%d_%H%M%S")
        await asyncio.gather(
            *(
                place.client.start_profile(f"{name}.replica{index}", config)
                for index, place in enumerate(self._places)
                if place.client.state is EngineState.READY
            )
        )

    async def stop_profile(self) -> list[str]:
        """End the recordings; the paths of all files."""
        self._check_ready()
        files = await asyncio.gather(*(place.client.stop_profile() for place in self._ready()))
        return [path for each in files for path in each]

    async def close(self) -> None:
        self._closed = True
        closed = await asyncio.gather(*(place.client.close() for place in self._places), return_exceptions=True)
        for error in closed:
            if isinstance(error, BaseException):
                raise error

    def kill(self) -> None:
        for place in self._places:
            place.client.kill()

    def _ready(self) -> list[_Place]:
        return [place for place in self._places if place.client.state is EngineState.READY]

    def _holder(self, request_id: str) -> _Place | None:
        return next((place for place in self._places if request_id in place.client.requests), None)

    def _choose(self, prefix: Prefix) -> _Place:
        """The replica that knows most of a prompt among those with little to do; else the one with the least.

        Raises:
            EngineUnavailable: none is ready.
        """
        self._check_ready()
        places = self._ready()
        for place in places:
            if place.restarts != place.client.restarts:
                place.restarts = place.client.restarts
                place.seen.clear()
        inside = {id(place): len(place.client.requests) for place in places}
        slack = self._slack if self._slack is not None else max(1, places[0].client.info.max_num_reqs // 4)
        most = min(inside.values()) + slack
        free = [place for place in places if inside[id(place)] <= most]
        return max(free, key=lambda place: (place.seen.matched(prefix), -inside[id(place)], -place.chosen))

    def _note(self, place: _Place, load: Load) -> None:
        stepped, place.load = load.step != place.load.step, load
        loads = [each.load for each in self._places]
        self._load = Load(
            step=self._load.step + stepped,
            seconds=load.seconds if stepped else self._load.seconds,
            rows=load.rows if stepped else self._load.rows,
            requests=sum(each.requests for each in loads),
            live=sum(each.live for each in loads),
            pages=sum(each.pages for each in loads),
            free_pages=sum(each.free_pages for each in loads),
            cached_pages=sum(each.cached_pages for each in loads),
            stages=load.stages if stepped else self._load.stages,
        )
        for listener in self._listeners:
            listener(self._load)

    def _check_ready(self) -> None:
        if self.state is not EngineState.READY:
            raise EngineUnavailable(f"The engine is {self.state.value}. Try again later.")
