"""The command as it is run: a server, an engine in a process of its own, real sockets, and OpenAI's client."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Queue
from typing import Any

import attrs
import httpx
import openai
import psutil
import pytest

from diffulex_serve.engine.child import PARENT_GONE
from diffulex_serve.engine.spec import EngineSpec

Q = "Q: Ann has 12 apples, buys 30 more and gives away 7. How many are left?"
ANSWER = "12 + 30 = 42. 42 - 7 = 35. The answer is 35."
LONG = {"prompt": "Q:", "max_tokens": 440, "ignore_eos": True}
PATIENCE = 120
"""Seconds that a loaded machine may need to start a server."""


@attrs.frozen
class Running:
    """A server, where it listens, and what it logged until it was ready."""

    process: subprocess.Popen[str]
    url: str
    lines: list[str]

    def engine(self) -> psutil.Process:
        [child] = psutil.Process(self.process.pid).children()
        return child


@contextmanager
def running(*arguments: str, **environ: str) -> Iterator[Running]:
    command = [sys.executable, "-m", "diffulex_core", "serve", "--model", "tiny/llada", "--port", "0", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **environ}) as process:
        said: Queue[str | None] = Queue()

        def read() -> None:
            assert process.stderr is not None
            for line in process.stderr:
                said.put(line)
            said.put(None)

        threading.Thread(target=read, daemon=True).start()
        lines: list[str] = []
        try:
            while True:
                line = said.get(timeout=PATIENCE)
                assert line is not None, "".join(lines)
                lines.append(line)
                found = re.search(r"is ready at (http://[^ \"]+)", line)
                if found:
                    break
            yield Running(process, found[1], lines)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    file = tmp_path_factory.mktemp("serve") / "serve.yaml"
    file.write_text("serve:\n  served_model_name: mine\n  log_format: json\nschedule:\n  max_num_reqs: 8\n")
    with running("--config", str(file), DIFFULEX_SERVE__API_KEY="secret") as made:
        yield made


@pytest.fixture(scope="module")
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="secret", max_retries=0, timeout=60)


def test_the_stock_client_completes_chats_and_streams(client: openai.OpenAI) -> None:
    [model] = client.models.list().data
    assert model.id == "mine"
    done = client.completions.create(model="mine", prompt=Q)
    assert (done.choices[0].text, done.choices[0].finish_reason) == (ANSWER, "stop")
    assert done.usage is not None
    assert done.usage.completion_tokens == 17
    messages: list[Any] = [{"role": "user", "content": Q}]
    chat = client.chat.completions.create(model="mine", messages=messages, logprobs=True, top_logprobs=1)
    assert chat.choices[0].message.content == ANSWER
    assert chat.choices[0].logprobs is not None
    assert "".join(each.token for each in chat.choices[0].logprobs.content or ()) == ANSWER
    stream = client.chat.completions.create(
        model="mine", messages=messages, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == ANSWER
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 17


def test_the_stock_client_understands_what_is_wrong(client: openai.OpenAI, server: Running) -> None:
    with pytest.raises(openai.NotFoundError, match="no model 'gpt'"):
        client.completions.create(model="gpt", prompt=Q)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.completions.create(model="mine", prompt=Q, temperature=-1)
    stranger = openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        stranger.models.list()


def test_a_client_that_closes_its_socket_ends_its_request_within_a_few_forwards(server: Running) -> None:
    headers = {"Authorization": "Bearer secret"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=60) as http:

        def steps() -> int:
            found = re.search(r"^diffulex_engine_steps_total (\d+)", http.get("/metrics").text, re.MULTILINE)
            assert found
            return int(found[1])

        before = steps()
        with http.stream("POST", "/generate", json={**LONG, "stream": True}) as response:
            next(response.iter_lines())
        deadline = time.monotonic() + 30
        while (ready := http.get("/ready").json())["kv_pages"]["free"] < ready["kv_pages"]["total"]:
            assert time.monotonic() < deadline
        assert steps() - before < 100
        assert ready["requests"] == 0


def test_an_idle_engine_uses_no_time(server: Running) -> None:
    engine = server.engine()
    time.sleep(0.2)
    before = sum(engine.cpu_times()[:2])
    time.sleep(1.0)
    assert sum(engine.cpu_times()[:2]) - before <= 0.02


def test_the_log_is_json_with_request_ids(server: Running) -> None:
    records = [json.loads(line) for line in server.lines]
    assert records[-1]["level"] == "info"
    assert {"time", "logger", "message", "request_id"} <= records[-1].keys()


def test_an_engine_that_is_killed_fails_its_requests_and_another_takes_its_place(server: Running) -> None:
    """Last of its server."""
    headers = {"Authorization": "Bearer secret"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=60) as http:
        with http.stream("POST", "/generate", json={**LONG, "stream": True, "stream_mode": "events"}) as response:
            lines = response.iter_lines()
            next(lines)
            server.engine().kill()
            events = [line for line in lines if line]
        assert json.loads(events[-2].removeprefix("data: "))["event"] == "error"
        ready = http.get("/ready")
        assert (ready.status_code, ready.json()["engine"]) == (503, "restarting")
        refused = http.post("/v1/completions", json={"prompt": Q})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_unavailable")
        assert "retry-after" in refused.headers
        assert http.get("/health").status_code == 200
        deadline = time.monotonic() + PATIENCE
        while http.get("/ready").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert http.post("/v1/completions", json={"prompt": Q}).json()["choices"][0]["text"] == ANSWER
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(timeout=60) == 0


def test_an_engine_ends_when_its_server_is_gone() -> None:
    command = [sys.executable, "-m", "diffulex_serve.engine.child", "text", "engine"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as engine:
        assert engine.stdin is not None
        spec = EngineSpec(model="tiny/llada").to_json()
        engine.stdin.write(f"tcp://127.0.0.1:9\nsecret\n{spec}\n".encode())
        engine.stdin.flush()
        time.sleep(0.5)
        assert engine.poll() is None
        engine.stdin.close()
        assert engine.wait(timeout=60) == PARENT_GONE
