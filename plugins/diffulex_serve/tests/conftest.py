"""A server in this process: the application over an inline engine, driven from one event loop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import attrs
import httpx
import pytest
from fastapi import FastAPI

from diffulex_serve.engine.client import Client
from diffulex_serve.engine.inline import inline_client
from diffulex_serve.engine.spec import EngineSpec
from diffulex_serve.http.app import create_app
from diffulex_serve.http.desk import Desk
from diffulex_serve.options import ServeOptions
from diffulex_serve.texts import Texts

T = TypeVar("T")


@attrs.frozen
class Served:
    """An application and the loop that it runs in."""

    runner: asyncio.Runner
    client: Client
    desk: Desk
    app: FastAPI

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(asyncio.wait_for(work, 60))

    def ask(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        async def asking() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client:
                return await client.request(method, path, **arguments)

        return self.run(asking())

    def post(self, path: str, body: Any, **arguments: Any) -> httpx.Response:
        return self.ask("POST", path, json=body, **arguments)

    def get(self, path: str, **arguments: Any) -> httpx.Response:
        return self.ask("GET", path, **arguments)

    def stream(self, path: str, body: Any) -> list[dict[str, Any]]:
        """The events of a stream, which must end as it should."""
        response = self.post(path, {**body, "stream": True})
        assert response.status_code == 200, response.text
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.text.split("\n\n") if line]
        assert all(line.startswith("data: ") for line in lines)
        assert lines[-1] == "data: [DONE]"
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]

    def with_options(self, options: ServeOptions) -> Served:
        """Another server over the same engine."""
        desk = Desk(self.client, self.desk.texts, options, model=self.desk.model)
        return Served(self.runner, self.client, desk, create_app(desk))


@contextmanager
def serving(spec: EngineSpec, options: ServeOptions | None = None) -> Iterator[Served]:
    """A server over an inline engine."""
    with asyncio.Runner() as runner:
        client = inline_client(spec.open)
        runner.run(client.start())
        desk = Desk(client, Texts(spec.load().tokenizer), options or ServeOptions(), model="tiny/llada")
        yield Served(runner, client, desk, create_app(desk))
        runner.run(client.close())
        desk.texts.close()


@pytest.fixture(scope="session")
def served() -> Iterator[Served]:
    with serving(EngineSpec(model="tiny/llada")) as server:
        yield server
