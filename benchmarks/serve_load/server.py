"""A server of tiny/llada in a process of its own, on a free port of the loopback interface."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import attrs
import psutil
from benchmarks.serve_load.records import Report

PATIENCE = 120.0
"""Seconds in which a server must start, answer, recover, or be empty again."""
SLOW = 3.0
"""Seconds in which the head of a request must arrive, and its body, at the server that is attacked."""
LONGEST_LINE = 2000
ODD_LINES = re.compile(r"Traceback| ERROR | CRITICAL |Task exception|never retrieved")


@attrs.frozen(kw_only=True)
class Server:
    """A server that runs. `odd_lines` are those of its log that tell of something that nobody expected."""

    process: asyncio.subprocess.Process
    port: int
    odd_lines: deque[str]

    def engines(self) -> list[psutil.Process]:
        """Its engines' processes."""
        return psutil.Process(self.process.pid).children()

    def files(self) -> int:
        """Files and sockets that its frontend holds open."""
        return psutil.Process(self.process.pid).num_fds()

    async def connect(self, *, room: int | None = None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection; `room` bytes wait at most for a client that does not read."""
        if room is None:
            return await asyncio.open_connection("127.0.0.1", self.port, limit=2**22)
        narrow = socket.socket()
        narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
        narrow.setblocking(False)
        await asyncio.get_running_loop().sock_connect(narrow, ("127.0.0.1", self.port))
        return await asyncio.open_connection(sock=narrow, limit=room)

    async def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Status, 0 where the connection was closed instead, and body."""
        reader, writer = await self.connect()
        try:
            writer.write(request(method, path, body))
            async with asyncio.timeout(PATIENCE):
                data = await reader.read()
        except ConnectionError:
            return 0, b""
        finally:
            writer.close()
        head, _, content = data.partition(b"\r\n\r\n")
        return (int(head.split()[1]), content) if head else (0, b"")

    async def state(self) -> dict[str, Any]:
        """What `/ready` tells."""
        state: dict[str, Any] = json.loads((await self.ask("GET", "/ready"))[1])
        return state

    async def stop(self) -> int:
        """Tell it to end; its exit status."""
        self.process.terminate()
        return await asyncio.wait_for(self.process.wait(), PATIENCE)


def request(method: str, path: str, body: bytes) -> bytes:
    """A request after which the connection is closed."""
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@asynccontextmanager
async def serving(arguments: Sequence[str], environ: Mapping[str, str] | None = None) -> AsyncIterator[Server]:
    """A server, with these variables beside our own, until it is ended."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "diffulex_core", "serve", "--model", "tiny/llada", "--port", "0", *arguments),
        stderr=asyncio.subprocess.PIPE,
        limit=2**24,
        env={**os.environ, **(environ or {})},
    )
    assert process.stderr is not None
    found = None
    while found is None:
        line = (await asyncio.wait_for(process.stderr.readline(), PATIENCE)).decode()
        if not line:
            raise SystemExit("The server ended before it was ready.")
        found = re.search(r"is ready at http://127\.0\.0\.1:(\d+)", line)
    odd_lines = deque[str](maxlen=50)
    reading = asyncio.create_task(_read_log(process.stderr, odd_lines))
    try:
        yield Server(process=process, port=int(found[1]), odd_lines=odd_lines)
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), PATIENCE)
            except TimeoutError:
                process.kill()
        reading.cancel()


async def _read_log(stream: asyncio.StreamReader, odd_lines: deque[str]) -> None:
    """Read the log so that the server never waits for us."""
    while line := await stream.readline():
        text = line.decode(errors="replace")
        if ODD_LINES.search(text) or len(text) > LONGEST_LINE:
            odd_lines.append(text.strip()[:200])


async def becomes(holds: Callable[[], Awaitable[bool]]) -> float | None:
    """Seconds until it holds; None when it does not in time."""
    began = time.monotonic()
    while time.monotonic() - began < PATIENCE:
        if await holds():
            return time.monotonic() - began
        await asyncio.sleep(0.05)
    return None


async def check_empty(server: Server, report: Report, after: str, *, files: int) -> None:
    """Nothing is left of what was asked: no request, no page, and no more open files than before."""

    async def empty() -> bool:
        state = await server.state()
        pages = state["kv_pages"]
        return (
            bool(state["ready"])
            and not state["requests"]
            and pages["free"] == pages["total"]
            and server.files() <= files
        )

    took = await becomes(empty)
    state = await server.state()
    seen = f"{state['requests']} requests, {state['kv_pages']['free']} of {state['kv_pages']['total']} pages free, "
    seen += f"{server.files()} files open, {files} before"
    report.check(f"no request, page or connection is left {after}", took is not None, seen)
