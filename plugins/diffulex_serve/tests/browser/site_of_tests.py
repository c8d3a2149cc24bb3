"""Servers of tiny/llada on free ports, one open, one with a key, one for pages of the first, and Debian's Chromium."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import uvicorn
from playwright.sync_api import Browser, sync_playwright

from diffulex_serve.engine.inline import inline_client
from diffulex_serve.engine.spec import EngineSpec
from diffulex_serve.http.app import create_app
from diffulex_serve.http.desk import Desk
from diffulex_serve.launch import listen, url_of
from diffulex_serve.options import SecuritySection, ServeOptions
from diffulex_serve.texts import Texts

KEY = "open sesame"
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


@attrs.frozen
class Site:
    """Where the servers are.

    Attributes:
        url: lets everybody in, but no pages of other origins.
        locked_url: wants `KEY`, and lets pages of `url` ask.
        other_url: lets pages of `url` ask.
    """

    url: str
    locked_url: str
    other_url: str


@contextmanager
def site(model: str = "tiny/llada") -> Iterator[Site]:
    """The servers, over one engine, in a thread."""
    listeners = [listen("127.0.0.1", 0) for _ in range(3)]
    stop, ready = asyncio.Event(), threading.Event()
    loop = asyncio.new_event_loop()
    serving = threading.Thread(target=lambda: loop.run_until_complete(serve()))

    async def serve() -> None:
        spec = EngineSpec(model=model)
        client, texts = inline_client(spec.open), Texts(spec.load().tokenizer)
        await client.start()
        servers, pages = [], (url_of(listeners[0]),)
        options = (
            SecuritySection(),
            SecuritySection(api_key=KEY, cors_origins=pages),
            SecuritySection(cors_origins=pages),
        )
        for security in options:
            app = create_app(Desk(client, texts, ServeOptions(security=security), model=model))
            servers.append(uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1)))
        async with asyncio.TaskGroup() as group:
            for server, listener in zip(servers, listeners, strict=True):
                group.create_task(server.serve(sockets=[listener]))
            ready.set()
            await stop.wait()
            for server in servers:
                server.should_exit = True
        await client.close()
        texts.close()

    serving.start()
    try:
        while not ready.wait(0.1):
            assert serving.is_alive(), "the servers could not start"
        yield Site(*(url_of(listener) for listener in listeners))
    finally:
        loop.call_soon_threadsafe(stop.set)
        serving.join(30)
        for listener in listeners:
            listener.close()


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser without a window.

    Raises:
        FileNotFoundError: there is no Chromium.
    """
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        raise FileNotFoundError("There is no Chromium. Install it with `apt-get install chromium`.")
    with sync_playwright() as playwright:
        # Containers have no user namespaces; all that is loaded is ours.
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()
