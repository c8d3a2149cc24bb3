"""What the server does not let happen to itself."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from diffulex_serve.engine.spec import EngineSpec
from diffulex_serve.options import LimitsSection, SecuritySection, ServeOptions, ServerSection

Q = "Q: Ann has 12 apples, buys 30 more and gives away 7. How many are left?"
LONG = {"prompt": "Q:", "max_tokens": 440, "ignore_eos": True, "thresholds": {"accept_threshold": 1}}
"""A token in a forward, or little more."""


@pytest.fixture(scope="module")
def narrow(request: pytest.FixtureRequest) -> Iterator[Any]:
    """An engine that runs one request at a time."""
    conftest = request.config.pluginmanager.get_plugin(str(request.path.parent / "conftest.py"))
    assert conftest is not None
    spec = EngineSpec(model="tiny/llada", options={"max_num_reqs": 1, "num_pages": 64})
    with conftest.serving(spec, ServeOptions(limits=LimitsSection(max_queue=1))) as server:
        yield server


def limited(served: Any, **limits: Any) -> Any:
    return served.with_options(ServeOptions(limits=LimitsSection(**limits)))


def secured(served: Any, **security: Any) -> Any:
    return served.with_options(ServeOptions(security=SecuritySection(**security)))


def test_every_route_but_health_wants_the_key(served: Any) -> None:
    server = secured(served, api_key="secret", enable_profiling=True)
    right = {"Authorization": "Bearer secret"}
    document = server.get("/openapi.json", headers=right).json()
    routes = [(method, path) for path, methods in document["paths"].items() for method in methods]
    assert len(routes) >= 23
    for method, path in [*routes, ("get", "/openapi.json"), ("get", "/nothing")]:
        expected = 200 if path in ("/health", "/v1/health") else 401
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic secret"}):
            response = server.ask(method.upper(), path, headers=headers)
            assert response.status_code == expected, path
    assert server.post("/v1/completions", {"prompt": Q}, headers=right).status_code == 200


def test_a_body_that_is_too_large_is_refused_declared_or_not(served: Any) -> None:
    server = limited(served, max_body_bytes=1000)
    assert server.post("/v1/completions", {"prompt": "a" * 2000}).status_code == 413

    async def pieces() -> Any:
        for _ in range(20):
            yield b"a" * 100

    headers = {"Content-Type": "application/json"}
    assert server.ask("POST", "/v1/completions", content=pieces(), headers=headers).status_code == 413
    assert server.post("/v1/completions", {"prompt": Q}).status_code == 200


def test_a_body_that_does_not_come_is_not_waited_for(served: Any) -> None:
    async def never() -> Any:
        yield b"{"
        await asyncio.sleep(30)

    server = limited(served, body_timeout=0.1)
    assert server.ask("POST", "/v1/completions", content=never()).status_code == 408


def test_a_prompt_longer_than_the_server_takes_is_refused(served: Any) -> None:
    response = limited(served, max_prompt_tokens=5).post("/v1/completions", {"prompt": Q})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "context_length_exceeded")


def test_a_request_that_takes_too_long_is_ended(narrow: Any) -> None:
    server = limited(narrow, request_timeout=0.05)
    response = server.post("/generate", LONG)
    assert (response.status_code, response.json()["error"]["code"]) == (504, "timeout")
    *_, last = server.stream("/generate", {**LONG, "stream_mode": "events"})
    assert (last["event"], last["type"]) == ("error", "timeout_error")
    assert "error" in server.stream("/v1/completions", LONG)[-1]
    assert all_free(narrow)


def all_free(server: Any) -> bool:
    async def wait() -> bool:
        async with asyncio.timeout(20):
            while server.client.load.live or server.client.load.free_pages < server.client.load.pages:
                await asyncio.sleep(0.01)
        return True

    return bool(server.run(wait()))


def test_more_requests_than_may_wait_are_told_to_come_back(narrow: Any) -> None:
    async def crowd() -> list[Any]:
        import httpx

        transport = httpx.ASGITransport(app=narrow.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client:
            body = {"prompt": Q, "max_tokens": 60, "ignore_eos": True}
            return await asyncio.gather(*(client.post("/v1/completions", json=body) for _ in range(5)))

    answers = narrow.run(crowd())
    assert sorted(answer.status_code for answer in answers) == [200, 200, 429, 429, 429]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert {answer.json()["error"]["code"] for answer in refused} == {"queue_full"}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert 'diffulex_requests_refused_total{why="busy"} 3.0' in narrow.get("/metrics").text
    assert narrow.post("/v1/completions", {"prompt": Q, "n": 3}).status_code == 429
    assert narrow.post("/v1/completions", {"prompt": Q, "n": 2}).status_code == 200


def aborts(server: Any) -> float:
    found = re.search(r'^diffulex_requests_total\{reason="aborted"\} (.*)$', server.get("/metrics").text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def scope_of(path: str) -> dict[str, Any]:
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
    scope |= {"http_version": "1.1", "scheme": "http", "server": ("test", 80), "root_path": ""}
    return {**scope, "headers": [(b"content-type", b"application/json")]}


async def leave(app: Any, path: str, body: dict[str, Any], gone: Callable[[list[dict[str, Any]]], bool]) -> None:
    """Ask, and leave once `gone` of what was received so far is true."""
    sent, left = [], asyncio.Event()
    incoming = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def receive() -> dict[str, Any]:
        if incoming:
            return incoming.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)
        if gone(sent):
            left.set()

    if gone(sent):
        asyncio.get_running_loop().call_later(0.1, left.set)
    async with asyncio.timeout(10):
        await app(scope_of(path), receive, send)


@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
def test_a_client_that_leaves_a_stream_ends_its_request_and_frees_its_pages(narrow: Any, path: str) -> None:
    def a_few(sent: list[dict[str, Any]]) -> bool:
        return len(sent) > 3

    before = narrow.client.load.step
    aborted = aborts(narrow)
    narrow.run(leave(narrow.app, path, {**LONG, "stream": True}, a_few))
    assert all_free(narrow)
    assert aborts(narrow) == aborted + 1
    assert narrow.client.load.step - before < 100  # of some 400 for the whole answer
    assert narrow.desk.inside == 0


@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
def test_a_client_that_leaves_while_it_waits_ends_its_request(narrow: Any, path: str) -> None:
    before = narrow.client.load.step
    narrow.run(leave(narrow.app, path, LONG, lambda sent: not sent))
    assert all_free(narrow)
    assert narrow.client.load.step - before < 100
    assert narrow.desk.inside == 0


def test_a_client_that_does_not_read_ends_its_stream_when_its_time_is_over(
    narrow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stuck() -> None:
        incoming = [{"type": "http.request", "body": json.dumps({**LONG, "stream": True}).encode(), "more_body": False}]

        async def receive() -> dict[str, Any]:
            if incoming:
                return incoming.pop()
            return await asyncio.Future()

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.body":
                await asyncio.Future()

        async with asyncio.timeout(10):
            await server.app(scope_of("/generate"), receive, send)

    monkeypatch.setattr("diffulex_serve.http.desk.READERS_GRACE", 0.1)
    server = limited(narrow, request_timeout=0.1)
    server.run(stuck())
    assert all_free(narrow)
    assert server.desk.inside == 0


def test_a_full_server_does_not_even_encode_a_prompt(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(text: str) -> list[int]:
        raise AssertionError(text)

    server = limited(served, max_queue=0)
    monkeypatch.setattr(server.desk.texts, "encode", never)
    with server.desk.admit(served.client.info.max_num_reqs):
        for path in ("/v1/completions", "/generate", "/v1/jobs"):
            assert server.post(path, {"prompt": Q}).status_code == 429
        chat = {"messages": [{"role": "user", "content": Q}]}
        assert server.post("/v1/chat/completions", chat).status_code == 429


def test_a_request_is_ended_by_its_id(narrow: Any) -> None:
    async def both() -> tuple[list[str], Any]:
        import httpx

        transport = httpx.ASGITransport(app=narrow.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client:
            body = {**LONG, "stream": True, "stream_mode": "block_append"}
            asking = asyncio.create_task(client.post("/generate", json=body))
            while not narrow.client.requests:
                await asyncio.sleep(0.005)
            [request_id] = narrow.client.requests
            told = await client.delete(f"/v1/requests/{request_id}")
            return (await asking).text.split("\n\n"), told.json()

    lines, told = narrow.run(both())
    assert told["aborted"] is True
    final = json.loads(lines[-3].removeprefix("data: "))
    assert (final["event"], final["finish_reason"], final["stop_detail"]) == ("final", "abort", "aborted")
    assert narrow.ask("DELETE", f"/v1/requests/{told['id']}").json()["aborted"] is False


@pytest.mark.parametrize(("path", "body"), [("/v1/completions", LONG), ("/v1/completions", {**LONG, "n": 2})])
def test_the_answers_of_openais_routes_are_ended_by_their_common_id(
    narrow: Any, path: str, body: dict[str, Any]
) -> None:
    async def both() -> tuple[list[dict[str, Any]], bool]:
        import httpx

        transport = httpx.ASGITransport(app=narrow.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client:
            asking = asyncio.create_task(client.post(path, json={**body, "stream": True}))
            while not narrow.desk._named:
                await asyncio.sleep(0.005)
            [name] = narrow.desk._named
            told = await client.delete(f"/v1/requests/{name}")
            lines = (await asking).text.split("\n\n")
            assert json.loads(lines[0].removeprefix("data: "))["id"] == name
            return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]], told.json()["aborted"]

    chunks, aborted = narrow.run(both())
    assert aborted is True
    ends = [choice for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]]
    assert {choice["finish_reason"] for choice in ends} == {"abort"}
    assert len(ends) == body.get("n", 1)
    assert narrow.desk._named == {}


def test_a_server_that_stops_takes_no_more_requests(served: Any) -> None:
    server = served.with_options(ServeOptions())
    server.desk.draining = True
    response = server.post("/v1/completions", {"prompt": Q})
    assert (response.status_code, response.json()["error"]["code"]) == (503, "draining")
    assert server.get("/ready").status_code == 503
    assert server.get("/health").status_code == 200


def test_what_nobody_expected_is_a_plain_500(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(text: str) -> list[int]:
        raise RuntimeError("the password is xyzzy")

    server = served.with_options(ServeOptions())
    monkeypatch.setattr(server.desk.texts, "encode", broken)
    response = server.post("/v1/completions", {"prompt": Q})
    assert response.status_code == 500
    assert response.json()["error"] == {
        "message": "The server failed. Its log says more.",
        "type": "server_error",
        "param": None,
        "code": None,
    }


def test_pages_of_other_origins_get_no_permission_unless_told(served: Any) -> None:
    headers = {"Origin": "http://evil.test", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in served.ask("OPTIONS", "/generate", headers=headers).headers
    server = secured(served, cors_origins=("http://good.test",), api_key="k")
    assert "access-control-allow-origin" not in server.ask("OPTIONS", "/generate", headers=headers).headers
    good = server.ask("OPTIONS", "/generate", headers={**headers, "Origin": "http://good.test"})
    assert (good.status_code, good.headers["access-control-allow-origin"]) == (200, "http://good.test")


LOCAL = ["localhost", "LocalHost:8000", "127.0.0.1:8000", "[::1]:8000", "[::1]", "192.168.0.7:80", "app.localhost", ""]
ELSEWHERE = [
    "evil.test",
    "evil.test:8000",
    "localhost.evil.test",
    "127.0.0.1.evil.test:80",
    "[::1].evil.test",
    "xlocalhost",
]


def _statuses(server: Any, hosts: list[str]) -> set[int]:
    return {server.get("/health", headers={"Host": host}).status_code for host in hosts}


def test_a_page_whose_name_points_here_is_refused_where_only_this_machine_may_ask(served: Any) -> None:
    for address in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        server = served.with_options(ServeOptions(server=ServerSection(host=address)))
        assert _statuses(server, LOCAL) == {200}
        assert _statuses(server, ELSEWHERE) == {403}
        refused = server.post("/generate", {"prompt": Q}, headers={"Host": "evil.test:8000"})
        assert refused.json()["error"]["code"] == "host_not_allowed"
        assert "--allowed-hosts evil.test" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    "options",
    [
        ServeOptions(server=ServerSection(host="0.0.0.0")),
        ServeOptions(security=SecuritySection(api_key="k")),
        ServeOptions(security=SecuritySection(allowed_hosts=("*",))),
    ],
    ids=["others may ask", "the key keeps strangers out", "told so"],
)
def test_elsewhere_every_name_will_do(served: Any, options: ServeOptions) -> None:
    assert _statuses(served.with_options(options), [*LOCAL, *ELSEWHERE]) == {200}


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("api_key", [None, "k"])
def test_named_hosts_and_local_ones_may_ask_and_no_others(served: Any, address: str, api_key: str | None) -> None:
    security = SecuritySection(allowed_hosts=("API.example.com:8443", "*.example.org"), api_key=api_key)
    server = served.with_options(ServeOptions(server=ServerSection(host=address), security=security))
    assert _statuses(
        server, ["api.example.com", "api.example.com.:443", "a.example.org", "a.b.example.org", *LOCAL]
    ) == {200}
    assert _statuses(server, ["example.com", "b.example.com", "example.org", "aexample.org", *ELSEWHERE]) == {403}


def test_a_request_keeps_a_plain_id_of_its_own_and_no_other(served: Any) -> None:
    assert served.get("/health", headers={"X-Request-Id": "mine-1"}).headers["x-request-id"] == "mine-1"
    assert served.get("/health", headers={"X-Request-Id": "a b"}).headers["x-request-id"] != "a b"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = st.sampled_from(
    ["prompt", "messages", "model", "temperature", "n", "stop", "seed", "logit_bias", "sparse", "stream", "max_tokens"]
)
ROUTES = ["/v1/completions", "/v1/chat/completions", "/generate", "/tokenize", "/detokenize", "/v1/jobs"]


@given(st.sampled_from(ROUTES), st.dictionaries(FIELDS, VALUES, max_size=4), st.booleans())
@settings(max_examples=60)
def test_no_body_makes_the_server_fail(served: Any, path: str, body: dict[str, Any], asked: bool) -> None:
    given_body = {"prompt": "Q", "max_tokens": 2, **body} if asked else body
    headers = {"Content-Type": "application/json"}
    content = json.dumps(given_body).encode("utf-8", "surrogatepass")
    response = served.ask("POST", path, content=content, headers=headers)
    assert response.status_code < 500, response.text


@given(st.sampled_from(ROUTES), st.binary(max_size=40))
@settings(max_examples=30)
def test_no_bytes_make_the_server_fail(served: Any, path: str, content: bytes) -> None:
    response = served.ask("POST", path, content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == 400


@pytest.mark.parametrize(
    "body", [b"[" * 100_000, b'{"prompt": "\\ud800"}', b'{"model": "\\udfff", "prompt": "Q"}', b"1" * 5000]
)
def test_hostile_bodies_are_refused(served: Any, body: bytes) -> None:
    response = served.ask("POST", "/v1/completions", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code in (400, 404)
    assert served.post("/v1/completions", {"prompt": Q}).status_code == 200
