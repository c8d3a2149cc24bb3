"""What nobody should send, over real connections: the server answers or hangs up, and goes on."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Awaitable, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
from benchmarks.serve_load.attacks import QUICK, SLOW, Attack, Kind, post, slow_body, slow_head
from benchmarks.serve_load.hostile import Seen, meet

from diffulex_serve.engine.messages import Submit
from diffulex_serve.engine.wire import encode
from diffulex_serve.http.app import create_app
from diffulex_serve.http.listening import UNREAD_GRACE, HttpServer, IdleConnections
from diffulex_serve.launch import listen
from diffulex_serve.options import LimitsSection, ServeOptions

WAITS = 0.5
"""Seconds that this server waits for a head, and for a body."""
OF_EACH_KIND = 12


@attrs.frozen(kw_only=True)
class Open:
    """A server that listens, and its port."""

    served: Any
    http: HttpServer
    port: int

    def meets(self, *attacks: Attack) -> list[Seen]:
        async def at_once() -> list[Seen]:
            return await asyncio.gather(*(meet(self.port, attack, longest=20) for attack in attacks))

        seen: list[Seen] = self.served.run(at_once())
        return seen

    def check_unharmed(self) -> None:
        """It answers, nothing of the attack is left in it, and no connection is."""

        async def quiet() -> None:
            desk = self.served.desk
            async with asyncio.timeout(20):
                while desk.client.load.live or desk.client.load.free_pages < desk.client.load.pages:
                    await asyncio.sleep(0.01)
                while self.http.server_state.connections or self.http.server_state.tasks:
                    await asyncio.sleep(0.01)

        [seen] = self.meets(Attack(pieces=(post("/v1/completions", b'{"prompt": "Q: 1 + 1", "max_tokens": 4}'),)))
        assert seen.statuses == (200,)
        self.served.run(quiet())
        assert self.served.desk.inside == 0


@pytest.fixture(scope="module")
def opened(served: Any) -> Iterator[Open]:
    limits = LimitsSection(head_timeout=WAITS, body_timeout=WAITS)
    server = served.with_options(ServeOptions(limits=limits))
    http, listener = HttpServer(create_app(server.desk), limits), listen("127.0.0.1", 0)

    async def begin() -> asyncio.Task[None]:
        task = asyncio.create_task(http.serve(sockets=[listener]))
        while not http.started:
            await asyncio.sleep(0.01)
        return task

    serving = served.run(begin())
    yield Open(served=server, http=http, port=listener.getsockname()[1])
    http.should_exit = True

    async def end() -> None:
        await serving

    served.run(end())


@pytest.mark.parametrize("kind", QUICK, ids=lambda kind: kind.__name__)
def test_what_nobody_should_send_makes_no_error_of_the_server(opened: Open, kind: Kind) -> None:
    attacks = [kind(random.Random(f"{kind.__name__} {number}")) for number in range(OF_EACH_KIND)]
    seen = opened.meets(*attacks)
    assert [each.fault(attack) for each, attack in zip(seen, attacks, strict=True)] == [None] * OF_EACH_KIND
    opened.check_unharmed()


@pytest.mark.parametrize("kind", SLOW, ids=lambda kind: kind.__name__)
def test_slow_senders_are_not_waited_for(opened: Open, kind: Kind) -> None:
    attacks = [kind(random.Random(number)) for number in range(20)]
    seen = opened.meets(*attacks)
    assert [each.fault(attack) for each, attack in zip(seen, attacks, strict=True)] == [None] * 20
    assert max(each.seconds for each in seen) < WAITS + 4
    opened.check_unharmed()


def test_a_slow_head_gets_no_answer_and_a_slow_body_the_status_408(opened: Open) -> None:
    head, body = opened.meets(slow_head(random.Random(1)), slow_body(random.Random(1)))
    assert (head.statuses, body.statuses) == ((), (408,))


def test_pipelined_requests_are_answered_in_their_order(opened: Open) -> None:
    kept = [
        post(path, body, headers={"Connection": "keep-alive"})
        for path, body in (("/tokenize", b'{"prompt": "Q"}'), ("/generate", b"{"), ("/nothing", b""))
    ]
    last = post("/v1/completions", b'{"prompt": "Q", "max_tokens": 2, "stream": true}')
    [seen] = opened.meets(Attack(pieces=(b"".join([*kept, last]),), owed=4))
    assert seen.statuses == (200, 400, 404, 200)


def test_very_many_silent_connections_do_not_keep_others_out(opened: Open) -> None:
    silent = [Attack(pieces=(b"GET /health HT",), owed=0) for _ in range(300)]
    honest = Attack(pieces=(post("/tokenize", b'{"prompt": "Q"}'),))
    *dead, served = opened.meets(*silent, honest)
    assert served.statuses == (200,)
    assert not any(each.hung or each.statuses for each in dead)


def test_a_path_without_end_is_logged_in_part(opened: Open, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="diffulex_serve.access"):
        opened.meets(Attack(pieces=(post("/" + "a" * 70_000 + "\n", b""),), owed=0))
        opened.meets(Attack(pieces=(post("/" + "a" * 30_000, b""),)))
    assert max(len(record.getMessage()) for record in caplog.records) < 1_000
    assert "/" + "a" * 199 in caplog.text


@pytest.mark.parametrize("field", ["stop", "confidence", "alg"])
def test_a_text_that_no_message_can_carry_is_refused(served: Any, monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    async def packed(request: Submit) -> None:
        encode([request])
        raise AssertionError("a message carries it")

    monkeypatch.setattr(served.client, "submit", packed)
    body = json.dumps({"prompt": "Q", field: "\ud800"})
    response = served.ask("POST", "/generate", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400, response.text


class Connection(SimpleNamespace):
    """What idling is judged by; `cycle` is the request that is being served, or was."""

    def __init__(self, **fields: Any) -> None:
        self.said: list[str] = []
        transport = SimpleNamespace(close=lambda: self.said.append("close"), abort=lambda: self.said.append("abort"))
        super().__init__(transport=transport, **fields)

    __hash__ = object.__hash__


@pytest.mark.parametrize("cycle", [None, SimpleNamespace(response_complete=True)])
def test_a_connection_is_closed_when_its_time_is_over_and_broken_off_when_nobody_reads(cycle: Any) -> None:
    idle, connection = IdleConnections(10.0), Connection(cycle=cycle)
    for now, said in ((0.0, []), (9.9, []), (10.0, ["close"]), (10.0 + UNREAD_GRACE, ["close", "abort"])):
        idle.close([connection], now)  # type: ignore[list-item]
        assert connection.said == said


def test_the_time_of_a_connection_begins_anew_behind_each_request() -> None:
    idle, connection = IdleConnections(10.0), Connection(cycle=None)
    idle.close([connection], 0.0)  # type: ignore[list-item]
    connection.cycle = SimpleNamespace(response_complete=False)
    idle.close([connection], 100.0)  # type: ignore[list-item]
    connection.cycle.response_complete = True
    for now in (101.0, 110.9):
        idle.close([connection], now)  # type: ignore[list-item]
    assert connection.said == []
    idle.close([connection], 111.0)  # type: ignore[list-item]
    assert connection.said == ["close"]


@pytest.mark.parametrize(
    ("seen", "fault"),
    [
        ({"statuses": (200,)}, None),
        ({"statuses": (503,)}, "status 503"),
        ({"statuses": (100,)}, "0 of 1 answers"),
        ({"statuses": (), "hung": True}, "hung after []"),
        ({"statuses": (400,), "told": b"Traceback"}, "told b'Traceback'"),
    ],
)
def test_what_counts_as_a_fault_of_the_server(seen: dict[str, Any], fault: str | None) -> None:
    met = Seen(**{"hung": False, "told": b"", "seconds": 0.0, **seen})
    assert met.fault(Attack(pieces=(b"",))) == fault


def test_a_server_that_says_nothing_and_one_that_tells_its_inside_are_found_out() -> None:
    def answering(words: bytes) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readline()
            if words:
                writer.write(words)
                writer.close()

        return answer

    async def scene() -> list[str | None]:
        attack, found = Attack(pieces=(b"GET / HTTP/1.1\r\n\r\n",)), []
        for words in (b"", b"HTTP/1.1 500 Oh\r\n\r\n", b'HTTP/1.1 400 No\r\n\r\nFile "app.py", line 1'):
            server = await asyncio.start_server(answering(words), "127.0.0.1", 0)
            seen = await meet(server.sockets[0].getsockname()[1], attack, longest=0.3)
            found.append(seen.fault(attack))
            server.close()
        return found

    silent, failed, told = asyncio.run(scene())
    assert (silent, failed) == ("hung after []", "status 500")
    assert told is not None
    assert told.startswith("told")
