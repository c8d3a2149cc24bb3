"""What the log says of a request, however it ended, and of engines that load."""

from __future__ import annotations

import asyncio
import io
import logging
from typing import Any

import httpx
import pytest
from hypothesis import given, settings, strategies as st

from diffulex_serve.engine.messages import Load
from diffulex_serve.engine.status import EngineState, ReplicaStatus
from diffulex_serve.journal import REQUEST_ID, entry, note
from diffulex_serve.loading import doing, watch_loading
from diffulex_serve.logs import JsonLines, TextLines
from diffulex_serve.options import LimitsSection, ServeOptions

Q = "Q: Ann has 12 apples, buys 30 more and gives away 7. How many are left?"
LONG = {"prompt": "Q:", "max_tokens": 440, "ignore_eos": True}


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "diffulex_serve")
    return caplog


def last_facts(said: pytest.LogCaptureFixture) -> dict[str, Any]:
    *_, record = [each for each in said.records if each.name == "diffulex_serve.access"]
    return dict(record.__dict__["facts"])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
def test_a_request_that_was_answered(served: Any, said: pytest.LogCaptureFixture, path: str, stream: bool) -> None:
    served.post(path, {"prompt": Q, "stream": stream}, headers={"X-Request-Id": "abc"})
    facts = last_facts(said)
    assert (facts["method"], facts["path"], facts["status"]) == ("POST", path, 200)
    assert (facts["outcome"], facts["prompt_tokens"], facts["tokens"]) == ("stop_eos", 20, 17)
    assert facts["forwards"] >= 2
    assert f"POST {path} 200 in " in said.messages[-1]
    assert "outcome=stop_eos" in said.messages[-1]


def test_the_costs_of_several_answers_are_summed(served: Any, said: pytest.LogCaptureFixture) -> None:
    served.post("/v1/completions", {"prompt": [Q, "Q:"], "max_tokens": 4, "ignore_eos": True})
    facts = last_facts(said)
    assert (facts["outcome"], facts["tokens"]) == ("length_tokens", 8)


def test_a_request_that_was_refused(served: Any, said: pytest.LogCaptureFixture) -> None:
    server = served.with_options(ServeOptions(limits=LimitsSection(max_queue=0)))
    with server.desk.admit(served.client.info.max_num_reqs):
        assert server.post("/generate", {"prompt": Q}).status_code == 429
    facts = last_facts(said)
    assert (facts["status"], facts["outcome"], facts["error"]) == (429, "refused:busy", "queue_full")
    served.post("/generate", {"prompt": "word " * 600})
    facts = last_facts(said)
    assert (facts["status"], facts["outcome"], facts["error"]) == (400, "refused:invalid", "context_length_exceeded")
    served.post("/generate", {"prompt": 3})
    assert (last_facts(said)["status"], last_facts(said)["error"]) == (400, "invalid_request_error")


def test_a_request_that_took_too_long_even_where_its_stream_began(served: Any, said: pytest.LogCaptureFixture) -> None:
    server = served.with_options(ServeOptions(limits=LimitsSection(request_timeout=0.02)))
    server.post("/generate", LONG)
    assert (last_facts(said)["status"], last_facts(said)["outcome"]) == (504, "timeout")
    server.post("/generate", {**LONG, "stream": True})
    assert (last_facts(said)["status"], last_facts(said)["outcome"]) == (200, "timeout")


def test_a_request_whose_client_left(served: Any, said: pytest.LogCaptureFixture) -> None:
    async def leave() -> None:
        transport = httpx.ASGITransport(app=served.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            asking = asyncio.create_task(client.post("/generate", json=LONG))
            while not served.client.requests:
                await asyncio.sleep(0.005)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    served.run(leave())
    assert last_facts(said)["outcome"] == "aborted"


def test_a_job_that_ended_has_a_line_of_its_own(served: Any, said: pytest.LogCaptureFixture) -> None:
    async def both() -> str:
        transport = httpx.ASGITransport(app=served.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            job: dict[str, Any] = (await client.post("/v1/jobs", json={"prompt": Q})).json()
            while (await client.get(f"/v1/jobs/{job['id']}")).json()["status"] == "running":
                await asyncio.sleep(0.02)
            return str(job["id"])

    job_id = served.run(both())
    [facts] = [each.__dict__["facts"] for each in said.records if each.name == "diffulex_serve.http.jobs"]
    assert (facts["job"], facts["outcome"], facts["answers"]) == (job_id, "finished", 1)


def test_a_path_ends_no_line(served: Any, said: pytest.LogCaptureFixture) -> None:
    served.get("/no%0Athing")
    assert "/no\\nthing" in said.messages[-1]
    assert "\n" not in said.messages[-1]


def test_outside_of_a_request_nothing_is_noted() -> None:
    note(tokens=3)
    with entry("one") as facts:
        note(tokens=2, outcome="a")
        note(tokens=3, outcome="b")
        note(outcome="a")
        assert REQUEST_ID.get() == "one"
    assert (facts, REQUEST_ID.get()) == ({"tokens": 5, "outcome": "a,b"}, "-")


@given(st.text(max_size=20))
@settings(max_examples=30)
def test_lines_say_of_which_process_they_are(message: str) -> None:
    record = logging.LogRecord("n", logging.WARNING, "f", 1, "%s", (message,), None)
    assert f"WARNING engine 1%: {message}" in TextLines("engine 1%").format(record)
    assert '"process": "engine 1"' in JsonLines("engine 1").format(record)
    assert '"process"' not in JsonLines().format(record)


class Loads:
    """A client that says what a test says of its engines."""

    def __init__(self, *words: str) -> None:
        self.replicas = [ReplicaStatus(state=EngineState.LOADING, load=Load(), doing=each) for each in words]


def watched(client: Any, seconds: float, **arguments: Any) -> None:
    async def scene() -> None:
        watching = asyncio.create_task(watch_loading(client, model="m", **arguments))
        await asyncio.sleep(seconds)
        logging.getLogger().warning("between")
        watching.cancel()
        await asyncio.wait({watching})

    asyncio.run(scene())


def test_on_a_terminal_a_line_is_drawn_that_no_record_lands_in(said: pytest.LogCaptureFixture) -> None:
    terminal = io.StringIO()
    watched(Loads("3 of 9 tensors loaded"), 0.3, terminal=terminal, width=30)
    drawn = terminal.getvalue().split("\r\x1b[2K")
    assert drawn[1] == "Loading m, 0 s. 3 of 9 tensor"
    assert len(drawn[1]) == 29
    assert drawn[-2:] == ["", ""]


def test_elsewhere_the_log_tells_now_and_then(said: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffulex_serve.loading._LOG_EVERY", 0.0)
    watched(Loads("3 of 9 tensors loaded"), 0.5, terminal=None)
    assert said.messages.count("loading: 3 of 9 tensors loaded") == 1


def test_what_several_engines_do_is_told_of_each_that_loads() -> None:
    replicas = Loads("reading", "").replicas
    ready = ReplicaStatus(state=EngineState.READY, load=Load(), doing="")
    assert doing([*replicas, ready]) == "Engine 0: reading Engine 1: Starting."
    assert doing([ready]) == ""
