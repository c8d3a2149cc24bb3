"""Running the server: the engine is loaded behind open doors, and signals end it in order."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from typing import TextIO

import attrs

from diffulex_core.plugin import ConfigError, DiffulexError
from diffulex_serve.engine.client import Client
from diffulex_serve.engine.process import process_client
from diffulex_serve.engine.protocols import EngineClient
from diffulex_serve.engine.replicas import ReplicatedClient
from diffulex_serve.engine.restarting import RestartingClient
from diffulex_serve.engine.spec import EngineSpec
from diffulex_serve.http.app import create_app
from diffulex_serve.http.desk import Desk
from diffulex_serve.http.hosts import is_loopback
from diffulex_serve.http.listening import HttpServer
from diffulex_serve.loading import watch_loading
from diffulex_serve.options import ServeOptions
from diffulex_serve.texts import Texts

_log = logging.getLogger(__name__)

_ADVICE: Mapping[int, str] = {
    errno.EADDRINUSE: "Another program listens there; end it, or choose another --port (0 takes a free one).",
    errno.EACCES: "Ports below 1024 are for privileged programs; choose another --port.",
}
"""What to do when a socket cannot listen, by the number of the error."""

_LAST_WAIT = 1.0
"""Seconds in which engines that were ended by force are gone; threads stay until the process ends."""
_LOOKS_PER_SECOND = 20
"""How often a stopping server looks whether its requests are done."""


async def run(
    spec: EngineSpec,
    options: ServeOptions,
    *,
    model: str,
    texts: Texts,
    replicas: int = 1,
    listener: socket.socket | None = None,
) -> None:
    """Serve until a signal ends it.

    The first signal lets running requests finish for `drain_timeout` seconds, the second ends them.

    Args:
        spec: the engine.
        options: the server's keys.
        model: the name under which clients ask for the model.
        texts: the model's tokenizer.
        replicas: engines that share the requests, where each has a process of its own.
        listener: a socket that listens already (`listen`), which is closed here; None = one that the options name.
    Raises:
        ConfigError: the address cannot be listened on.
        EngineDied: the engine could not load.
    """
    listener = listener or listen(options.server.host, options.server.port)
    if not is_loopback(options.server.host) and options.security.api_key is None:
        _log.warning("others can reach %s and no api_key is set: anybody may ask", options.server.host)
    client = make_client(spec, options, replicas)
    desk = Desk(client, texts, options, model=model)
    server = HttpServer(create_app(desk), options.limits)
    stopping, forced = asyncio.Event(), asyncio.Event()
    with _signals(server, stopping, forced):
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        draining = asyncio.create_task(_drain(server, stopping, desk))
        try:
            await _load(client, serving, stopping, url=url_of(listener), model=model, terminal=_terminal(options))
            await serving
        finally:
            server.should_exit = True
            draining.cancel()
            await asyncio.gather(serving, draining, return_exceptions=True)
            texts.close()
            listener.close()
            await _close(client, forced)
    _log.info("stopped")


def make_client(spec: EngineSpec, options: ServeOptions, replicas: int = 1) -> EngineClient:
    """A client of as many engines as there are to be; an engine in a thread makes its copies itself."""
    if replicas == 1 or options.server.backend == "inline":
        return _make_one(spec, options)
    return ReplicatedClient([_make_one(attrs.evolve(spec, replica=index), options) for index in range(replicas)])


def _make_one(spec: EngineSpec, options: ServeOptions) -> RestartingClient:
    recovery = options.recovery

    def make() -> Client:
        if options.server.backend == "inline":
            # It imports torch, which a server whose engines have processes of their own does not need.
            from diffulex_serve.engine.inline import inline_client

            return inline_client(spec.open, stall_timeout=recovery.stall_timeout, load_timeout=recovery.load_timeout)
        return process_client(
            spec,
            stall_timeout=recovery.stall_timeout,
            load_timeout=recovery.load_timeout,
            log_format=options.server.log_format,
        )

    return RestartingClient(make, restart=options.recovery.restart)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        ConfigError: the address is taken or not ours.
    """
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        # A name may stand for several addresses; that of IPv4 is what its clients try, whatever they are.
        family, _, _, _, address = min(found, key=lambda each: each[0] is not socket.AF_INET)
        listener = socket.socket(family)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(2048)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, "Check --host, which is an address or a name of this machine.")
        raise ConfigError([f"Nothing can listen on {host}, port {port}: {error.strerror}. {advice}"]) from error
    listener.setblocking(False)
    return listener


def url_of(listener: socket.socket) -> str:
    """Where a listening socket is reached."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def _load(
    client: EngineClient,
    serving: asyncio.Task[None],
    stopping: asyncio.Event,
    *,
    url: str,
    model: str,
    terminal: TextIO | None,
) -> None:
    """Load the engine while the server answers probes already, unless it is to stop."""
    began = time.monotonic()
    _log.info("loading %s; %s/ready tells when it is done", model, url)
    loading = asyncio.create_task(client.start())
    stopped = asyncio.create_task(stopping.wait())
    width = shutil.get_terminal_size().columns
    watching = asyncio.create_task(watch_loading(client, model=model, terminal=terminal, width=width))
    try:
        await asyncio.wait({loading, serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
        watching.cancel()
        await asyncio.wait({watching})
        if loading.done():
            info = loading.result()
            how = f"{info.family}, {info.strategy}"
            _log.info("%s (%s) is ready at %s after %.1f s", model, how, url, time.monotonic() - began)
    finally:
        for task in (loading, stopped, watching):
            task.cancel()
        results = await asyncio.gather(loading, stopped, watching, return_exceptions=True)
        for error in results:
            if isinstance(error, DiffulexError):
                _log.debug("loading ended: %s", error)


def _terminal(options: ServeOptions) -> TextIO | None:
    """Where a line about loading can be drawn; None where nobody looks, or the log is for machines."""
    server = options.server
    if server.backend == "inline" or server.log_format == "json" or not sys.stderr.isatty():
        return None
    return sys.stderr


async def _drain(server: HttpServer, stopping: asyncio.Event, desk: Desk) -> None:
    """Once told to stop, refuse new requests, wait for those that run, and end the server."""
    await stopping.wait()
    desk.draining = True
    seconds = desk.options.limits.drain_timeout
    if desk.inside:
        _log.info("stopping; %d requests have %g s to finish, a second signal ends them", desk.inside, seconds)
    deadline = time.monotonic() + seconds
    while desk.inside and time.monotonic() < deadline:
        await asyncio.sleep(1 / _LOOKS_PER_SECOND)
    if desk.inside:
        server.config.timeout_graceful_shutdown = 0
    server.should_exit = True


async def _close(client: EngineClient, forced: asyncio.Event) -> None:
    """End the engines in order, and by force once a second signal came."""
    closing, hurry = asyncio.create_task(client.close()), asyncio.create_task(forced.wait())
    await asyncio.wait({closing, hurry}, return_when=asyncio.FIRST_COMPLETED)
    hurry.cancel()
    if not closing.done():
        client.kill()
        await asyncio.wait({closing}, timeout=_LAST_WAIT)
    if closing.done():
        closing.result()


@contextlib.contextmanager
def _signals(server: HttpServer, stopping: asyncio.Event, forced: asyncio.Event) -> Iterator[None]:
    """Interrupts stop the server in order, and at once when they come again."""

    def stop() -> None:
        if stopping.is_set():
            server.config.timeout_graceful_shutdown = 0
            server.should_exit = True
            forced.set()
        stopping.set()

    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
