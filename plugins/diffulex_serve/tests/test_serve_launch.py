"""The life of a server, from loading to its last request."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import threading
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import httpx
import pytest

from diffulex_core.engine import Diffulex
from diffulex_core.errors import ConfigError, DiffulexError
from diffulex_core.generation import StepResult
from diffulex_serve.engine.errors import EngineDied
from diffulex_serve.engine.spec import EngineSpec
from diffulex_serve.launch import _close, listen, run, url_of as address_of
from diffulex_serve.options import LimitsSection, ServeOptions, ServerSection
from diffulex_serve.texts import Texts

T = TypeVar("T")
SPEC = EngineSpec(model="tiny/llada")
LONG = {"prompt": "Q:", "max_tokens": 300, "ignore_eos": True, "stream": True, "stream_mode": "block_append"}


@pytest.fixture
def texts() -> Texts:
    return Texts(SPEC.load().tokenizer)


def options(**limits: float) -> ServeOptions:
    server = ServerSection(port=0, backend="inline")
    return ServeOptions(server=server, limits=LimitsSection(**limits))  # type: ignore[arg-type]


async def url_of(said: pytest.LogCaptureFixture, serving: asyncio.Task[None], words: str) -> str:
    """Where the server listens, once its log holds these words."""
    while True:
        found = re.search(rf"{words}.*?(http://[0-9.:]+)|(http://[0-9.:]+).*{words}", said.text)
        if found:
            return found[1] or found[2]
        if serving.done():
            serving.result()
        await asyncio.sleep(0.02)


async def stopped_while_it_streams(
    said: pytest.LogCaptureFixture, texts: Texts, given: ServeOptions, signals: int
) -> list[str]:
    """Lines of a stream during which the process got signals."""
    serving = asyncio.create_task(run(SPEC, given, model="m", texts=texts))
    url = await url_of(said, serving, "is ready at")
    lines: list[str] = []
    async with (
        httpx.AsyncClient(base_url=url, timeout=60) as http,
        http.stream("POST", "/generate", json=LONG) as response,
    ):
        arriving = response.aiter_lines()
        lines.append(await anext(arriving))
        for _ in range(signals):
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(0.01)
        if given.limits.drain_timeout > 1 and signals == 1:
            refused = await http.post("/v1/completions", json={"prompt": "Q:"})
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        try:
            lines += [line async for line in arriving if line]
        except httpx.RemoteProtocolError:
            lines.append("cut")
    await serving
    return lines


def within(seconds: float, scene: Callable[[], Awaitable[T]]) -> T:
    async def bounded() -> T:
        async with asyncio.timeout(seconds):
            return await scene()

    return asyncio.run(bounded())


def test_a_signal_lets_running_requests_finish_and_takes_no_new_ones(
    caplog: pytest.LogCaptureFixture, texts: Texts
) -> None:
    caplog.set_level(logging.INFO, "diffulex_serve")
    before = signal.getsignal(signal.SIGTERM)
    lines = within(60, lambda: stopped_while_it_streams(caplog, texts, options(), signals=1))
    assert lines[-1] == "data: [DONE]"
    final = json.loads(lines[-2].removeprefix("data: "))
    assert (final["event"], final["stop_detail"], len(final["token_ids"])) == ("final", "length_tokens", 300)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(("drain", "signals"), [(0.05, 1), (60.0, 2)])
def test_requests_end_when_their_time_is_over_or_a_second_signal_comes(
    caplog: pytest.LogCaptureFixture, texts: Texts, monkeypatch: pytest.MonkeyPatch, drain: float, signals: int
) -> None:
    caplog.set_level(logging.INFO, "diffulex_serve")
    step = Diffulex.step

    def slow(engine: Diffulex) -> StepResult:
        time.sleep(0.02)  # More than a hundred of these: the answer takes seconds, whatever else the machine does.
        return step(engine)

    monkeypatch.setattr(Diffulex, "step", slow)
    given = options(drain_timeout=drain)
    lines = within(60, lambda: stopped_while_it_streams(caplog, texts, given, signals=signals))
    assert not any('"length_tokens"' in line for line in lines)


class Stuck:
    """Engines that do not end by themselves."""

    def __init__(self) -> None:
        self.killed = asyncio.Event()

    async def close(self) -> None:
        await self.killed.wait()

    def kill(self) -> None:
        self.killed.set()


def test_a_second_signal_ends_engines_that_do_not_end_by_themselves() -> None:
    async def scene() -> None:
        client, forced = Stuck(), asyncio.Event()
        closing = asyncio.create_task(_close(client, forced))  # type: ignore[arg-type]  # it is all that is asked for
        await asyncio.sleep(0.05)
        assert not closing.done()
        forced.set()
        await closing
        assert client.killed.is_set()

    within(10, scene)


def test_a_name_of_several_addresses_is_listened_on_where_its_clients_try_first() -> None:
    for host, shown in (("localhost", "127.0.0.1"), ("::1", "[::1]"), ("[::1]", "[::1]")):
        with listen(host, 0) as listener:
            assert address_of(listener).startswith(f"http://{shown}:")


def test_a_port_that_is_taken_is_told_with_what_to_do() -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ConfigError, match="Another program listens there"):
            listen("127.0.0.1", port)
    with pytest.raises(ConfigError, match="Check --host"):
        listen("203.0.113.1", 0)


def test_a_server_answers_probes_while_its_engine_loads_and_says_why_it_could_not(
    caplog: pytest.LogCaptureFixture, texts: Texts, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "diffulex_serve")
    asked = threading.Event()

    def slow(_: EngineSpec) -> object:
        asked.wait(20)
        raise DiffulexError("the weights are gone")

    monkeypatch.setattr(EngineSpec, "open", slow)

    async def scene() -> None:
        serving = asyncio.create_task(run(SPEC, options(), model="m", texts=texts))
        url = await url_of(caplog, serving, "loading")
        async with httpx.AsyncClient(base_url=url, timeout=20) as http:
            assert (await http.get("/health")).status_code == 200
            ready = await http.get("/ready")
            assert (ready.status_code, ready.json()["engine"]) == (503, "loading")
            refused = await http.post("/v1/completions", json={"prompt": "Q:"})
            assert refused.status_code == 503
        asked.set()
        with pytest.raises(EngineDied, match="weights are gone"):
            await serving

    within(60, scene)
