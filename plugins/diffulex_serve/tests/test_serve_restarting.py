"""Engines that die or get stuck: what their requests are told, and how another engine takes the place."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import pytest
import zmq
import zmq.asyncio

from diffulex_core.engine import Diffulex
from diffulex_serve.engine.client import Client
from diffulex_serve.engine.errors import EngineDied, EngineUnavailable
from diffulex_serve.engine.inline import ENGINE_THREAD, inline_client
from diffulex_serve.engine.messages import (
    Accepted,
    Command,
    Died,
    Ended,
    Event,
    Load,
    Loading,
    Ready,
    Stepped,
    Submit,
)
from diffulex_serve.engine.process import ProcessTransport, process_client
from diffulex_serve.engine.restarting import Backoff, RestartingClient
from diffulex_serve.engine.spec import EngineSpec
from diffulex_serve.engine.status import EngineState
from diffulex_serve.engine.watchdog import Watchdog
from tests.integration.engine_info import INFO

T = TypeVar("T")
SPEC = EngineSpec(model="tiny/llada")
LONG = {"temperature": 0.0, "max_tokens": 440, "ignore_eos": True}
SHORT = {"temperature": 0.0, "max_tokens": 8, "ignore_eos": True}
AT_ONCE = Backoff(first=0.01, most=0.02)


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(work, 120))


def submit(request_id: str, **params: Any) -> Submit:
    return Submit(request_id=request_id, prompt=(52, 30, 38), params=params)


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0.01)


class Puppet:
    """A transport whose engine says what a test says."""

    def __init__(self, *, loads: bool = True) -> None:
        self.loads = loads
        self.sent: list[Command] = []
        self.closed = 0
        self.killed = False
        self.events: asyncio.Queue[Sequence[Event]] = asyncio.Queue()

    async def open(self) -> None:
        self.say(
            Ready(info=INFO) if self.loads else Died(kind="Error", message="no weights"), Load(pages=9, free_pages=9)
        )

    def say(self, *events: Event) -> None:
        self.events.put_nowait(events)

    def send(self, command: Command) -> None:
        self.sent.append(command)
        if isinstance(command, Submit):
            self.say(Accepted(request_id=command.request_id))

    async def receive(self) -> Sequence[Event]:
        return await self.events.get()

    async def close(self) -> None:
        self.closed += 1

    def kill(self) -> None:
        self.killed = True


class Stage:
    """Engines one after the other; the test says which of them can load."""

    def __init__(self, *loads: bool) -> None:
        self._loads = iter(loads)
        self.puppets: list[Puppet] = []

    def make(self) -> Client:
        self.puppets.append(Puppet(loads=next(self._loads, True)))
        return Client(self.puppets[-1])


def test_requests_of_an_engine_that_died_fail_and_those_of_the_next_are_served() -> None:
    async def scene() -> None:
        stage = Stage()
        client = RestartingClient(stage.make, backoff=AT_ONCE)
        told: list[Load] = []
        client.on_load(told.append)
        await client.start()
        first = stage.puppets[0]
        first.say(Load(step=4, live=1, pages=9, free_pages=2))
        answer = await client.submit(submit("a"))
        first.say(Died(kind="WorkerError", message="the device fell off"))
        with pytest.raises(EngineDied, match="fell off"):
            _ = [event async for event in answer]
        assert client.state is EngineState.RESTARTING
        with pytest.raises(EngineUnavailable, match="restarting"):
            await client.submit(submit("b"))
        with pytest.raises(EngineUnavailable, match="restarting"):
            await client.abort("b")
        assert client.info == INFO
        await until(lambda: client.state is EngineState.READY)
        assert (client.restarts, first.closed, len(stage.puppets)) == (1, 1, 2)
        assert (client.load.live, client.load.free_pages) == (0, 9)
        stage.puppets[1].say(Load(step=0, pages=9, free_pages=8))
        again = await client.submit(submit("b"))
        stage.puppets[1].say(Ended(request_id="b", reason="stop_eos"))
        assert [event async for event in again] == [Ended(request_id="b", reason="stop_eos")]
        assert [load.step for load in told] == sorted(load.step for load in told)
        assert told[-1].step == 5
        await client.close()
        assert [each.closed for each in stage.puppets] == [1, 1]

    run(scene())


def test_an_engine_that_cannot_come_back_is_tried_again_and_again() -> None:
    async def scene() -> None:
        stage = Stage(True, False, False, True)
        client = RestartingClient(stage.make, backoff=AT_ONCE)
        await client.start()
        stage.puppets[0].say(Died(kind="Error", message="gone"))
        await until(lambda: client.restarts == 1)
        assert [each.closed for each in stage.puppets] == [1, 1, 1, 0]
        await client.close()

    run(scene())


def test_an_engine_that_never_loaded_is_not_tried_again() -> None:
    async def scene() -> None:
        stage = Stage(False)
        client = RestartingClient(stage.make, backoff=AT_ONCE)
        with pytest.raises(EngineDied, match="no weights"):
            await client.start()
        await client.close()
        assert [each.closed for each in stage.puppets] == [1]

    run(scene())


def test_without_restarts_an_engine_that_died_stays_dead() -> None:
    async def scene() -> None:
        stage = Stage()
        client = RestartingClient(stage.make, restart=False, backoff=AT_ONCE)
        await client.start()
        stage.puppets[0].say(Died(kind="Error", message="gone"))
        await until(lambda: client.state is not EngineState.READY)
        await asyncio.sleep(0.1)
        assert (client.state, len(stage.puppets)) == (EngineState.FAILED, 1)
        await client.close()
        assert stage.puppets[0].closed == 1

    run(scene())


def test_a_client_that_is_closed_while_it_waits_to_start_again_ends() -> None:
    async def scene() -> None:
        stage = Stage()
        client = RestartingClient(stage.make, backoff=Backoff(first=30.0))
        await client.start()
        stage.puppets[0].say(Died(kind="Error", message="gone"))
        await until(lambda: client.state is EngineState.RESTARTING)
        await client.close()
        await client.close()
        assert (client.state, [each.closed for each in stage.puppets]) == (EngineState.CLOSED, [1])

    run(scene())


class Silent(Puppet):
    """Its engine begins to load and is never heard of again."""

    async def open(self) -> None:
        self.say(Loading(doing="Reading the weights"))


def test_an_engine_that_does_not_load_in_time_counts_as_dead_and_says_what_it_did() -> None:
    async def scene() -> None:
        puppet = Silent()
        client = RestartingClient(lambda: Client(puppet, load_timeout=0.1))
        with pytest.raises(EngineDied, match=r"did not load in 0\.1 s.*Reading the weights") as died:
            await client.start()
        assert died.value.kind == "EngineSlow"
        assert (client.state, puppet.closed) == (EngineState.CLOSED, 1)
        [status] = client.replicas
        assert status.deaths == {"EngineSlow": 1}

    run(scene())


def test_a_start_that_is_given_up_is_no_engine_that_was_too_slow() -> None:
    async def scene() -> None:
        puppet = Silent()
        client = Client(puppet, load_timeout=30.0)
        starting = asyncio.create_task(client.start())
        await until(lambda: client.replicas[0].doing == "Reading the weights")
        assert client.replicas[0].state is EngineState.LOADING
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert (puppet.closed, client.replicas[0].deaths) == (1, {})

    run(scene())


def test_deaths_are_counted_by_what_they_died_of_those_of_starts_included() -> None:
    async def scene() -> None:
        stage = Stage(True, False, True)
        client = RestartingClient(stage.make, backoff=AT_ONCE)
        await client.start()
        stage.puppets[0].say(Load(step=0, live=3, pages=9, free_pages=2))
        await until(lambda: client.replicas[0].waiting == 3)
        stage.puppets[0].say(Died(kind="WorkerError", message="the device fell off"))
        await until(lambda: client.state is EngineState.RESTARTING)
        [status] = client.replicas
        assert (status.state, status.waiting, status.last_error) == (EngineState.RESTARTING, 0, "the device fell off")
        await until(lambda: client.restarts == 1)
        [status] = client.replicas
        assert (status.deaths, status.restarts) == ({"WorkerError": 1, "Error": 1}, 1)
        assert (status.state, status.last_error) == (EngineState.READY, "no weights")
        await client.close()

    run(scene())


def test_a_process_that_cannot_be_started_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        clients = iter([Client(Puppet()), process_client(SPEC), Client(Puppet())])
        client = RestartingClient(lambda: next(clients), backoff=AT_ONCE)
        await client.start()
        first = client.replicas[0]

        async def none_left(*_: object, **__: object) -> None:
            raise BlockingIOError("Resource temporarily unavailable")

        monkeypatch.setattr(asyncio, "create_subprocess_exec", none_left)
        client._client._lose(EngineDied("gone", kind="Error"))
        await until(lambda: client.restarts == 1)
        assert first.deaths == {}
        assert client.replicas[0].deaths == {"Error": 1, "BlockingIOError": 1}
        await client.close()

    run(scene())


def test_where_no_folder_can_be_made_the_engine_is_reached_over_the_loopback(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene() -> None:
        transport = ProcessTransport(SPEC)
        socket = zmq.asyncio.Context.instance().socket(zmq.ROUTER)
        assert transport._bind(socket).startswith("tcp://127.0.0.1:")
        socket.close(linger=0)

    def full(**_: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    run(scene())
    assert "No space left on device" in caplog.text


@pytest.mark.parametrize("how", ["killed", "untold"])
def test_a_process_that_is_stuck_ends_by_force(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    async def scene() -> None:
        transport = ProcessTransport(SPEC, grace=60.0)
        await transport.open()
        assert transport._process is not None
        os.kill(transport._process.pid, signal.SIGSTOP)
        closing = asyncio.create_task(transport.close())
        await asyncio.sleep(0.05)
        if how == "killed":
            transport.kill()
        async with asyncio.timeout(20):
            await closing
        assert transport._process.returncode == -signal.SIGKILL
        transport.kill()

    monkeypatch.setattr("diffulex_serve.engine.process.UNTOLD_GRACE", 30.0 if how == "killed" else 0.1)
    run(scene())


def test_waits_grow_to_a_limit() -> None:
    waits = [Backoff().waits(deaths) for deaths in (1, 2, 3, 7, 10**6)]
    assert waits == [0.5, 1.0, 2.0, 30.0, 30.0]


def test_silence_counts_while_a_word_is_due_and_only_a_word_ends_it() -> None:
    async def scene() -> None:
        busy, silences = False, 0

        def silent() -> None:
            nonlocal silences
            silences += 1

        dog = Watchdog(0.1, busy=lambda: busy, silent=silent, last_look=0.05)
        dog.expect()
        busy = True
        for _ in range(5):
            await asyncio.sleep(0.05)
            dog.heard()
        assert silences == 0
        busy = False
        await asyncio.sleep(0.3)
        dog.expect()
        busy = True
        for _ in range(12):
            await asyncio.sleep(0.05)
            dog.expect()
        assert silences >= 1
        dog.stop()

    run(scene())


def test_an_engine_that_says_nothing_fails_its_requests() -> None:
    async def scene() -> None:
        client = Client(Puppet(), stall_timeout=0.2)
        await client.start()
        answer = await client.submit(submit("a"))
        with pytest.raises(EngineDied, match=r"said nothing for 0\.2 s") as died:
            async with asyncio.timeout(10):
                _ = [event async for event in answer]
        assert died.value.kind == "EngineStuck"
        assert client.state is EngineState.FAILED
        await client.close()

    run(scene())


def test_an_idle_engine_may_be_silent_for_ever() -> None:
    async def scene() -> None:
        puppet = Puppet()
        client = Client(puppet, stall_timeout=0.02)
        await client.start()
        answer = await client.submit(submit("a"))
        puppet.say(Ended(request_id="a", reason="stop_eos"))
        assert len([event async for event in answer]) == 1
        await asyncio.sleep(1.3)
        assert client.state is EngineState.READY
        await client.close()

    run(scene())


def test_a_process_that_is_stopped_counts_as_stuck_and_another_takes_its_place() -> None:
    async def scene() -> None:
        client = RestartingClient(lambda: process_client(SPEC, grace=0.2, stall_timeout=3.0), backoff=AT_ONCE)
        first = await client.start()
        answer = await client.submit(submit("a", **LONG))
        assert isinstance(await anext(aiter(answer)), Stepped)
        os.kill(first.pid, signal.SIGSTOP)
        with pytest.raises(EngineDied, match="said nothing"):
            _ = [event async for event in answer]
        await until(lambda: client.state is EngineState.READY)
        assert client.info.pid != first.pid
        with pytest.raises(ProcessLookupError):
            os.kill(first.pid, 0)
        async with await client.submit(submit("b", **SHORT)) as again:
            *_, end = [event async for event in again]
        assert isinstance(end, Ended)
        assert (end.reason, len(end.token_ids)) == ("length_tokens", 8)
        await client.close()

    run(scene())


def test_a_thread_that_is_stuck_cannot_be_ended_and_is_given_up() -> None:
    free = threading.Event()

    def stuck() -> Diffulex:
        engine = SPEC.open()

        def never(*, collect: bool = True) -> Any:
            free.wait(50)
            raise RuntimeError("too late")

        engine.step = never  # type: ignore[method-assign]
        return engine

    async def scene() -> None:
        client = RestartingClient(lambda: inline_client(stuck, grace=0.1, stall_timeout=0.2), backoff=AT_ONCE)
        await client.start()
        with pytest.raises(EngineDied, match="said nothing"):
            await client.submit(submit("a", **LONG))
        await until(lambda: client.state is EngineState.FAILED)
        with pytest.raises(EngineDied, match="cannot be ended by force"):
            await client.close()

    before = set(threading.enumerate())
    try:
        run(scene())
    finally:
        free.set()
        for thread in set(threading.enumerate()) - before:
            if thread.name == ENGINE_THREAD:
                thread.join(60)
