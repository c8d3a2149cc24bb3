"""A server under load and under attack: every answer is checked, and what it left behind is counted.

Run: python benchmarks/serve_load.py [--clients 200] [--seconds 60] [--cancels 1000] [--hostile 10000] [--json FILE]
It starts `diffulex serve` on a free port of the loopback interface, and ends with status 1 when a check failed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import psutil

from diffulex_tiny import problems

PROMPTS = 32
PATIENCE = 120.0
"""Seconds in which a server must start, recover, or be empty again."""
FLAT = 48.0
"""MiB by which a process may grow under load once it is warm."""
ROUTES = ("/generate", "/v1/completions", "/v1/chat/completions", "/v1/jobs", "/tokenize", "/detokenize")


@attrs.define
class Report:
    """What was found: numbers, and checks with what they saw."""

    numbers: dict[str, Any] = attrs.field(factory=dict)
    checks: list[tuple[str, bool, str]] = attrs.field(factory=list)

    def check(self, what: str, good: bool, seen: object) -> None:
        self.checks.append((what, good, str(seen)))
        print(f"{'ok  ' if good else 'FAIL'} {what}: {seen}", flush=True)


@attrs.frozen(kw_only=True)
class Outcome:
    """A stream: `ids` of its answer where it came to an end, the seconds until its first piece, and how it ended."""

    ids: tuple[int, ...] | None
    ttft: float | None
    how: str


@attrs.frozen(kw_only=True)
class Server:
    """A server that runs."""

    process: asyncio.subprocess.Process
    port: int

    def engines(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, limit=2**22)

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

    async def ready(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads((await self.ask("GET", "/ready"))[1])
        return state

    async def stream(self, body: dict[str, Any], *, leave_after: float | None = None) -> Outcome:
        """Read a stream to its end, or leave it."""
        began, ttft = time.perf_counter(), None
        reader, writer = await self.connect()
        try:
            writer.write(request("POST", "/generate", json.dumps(body).encode()))
            async with asyncio.timeout(leave_after or PATIENCE):
                status = int((await reader.readline()).split()[1])
                if status != 200:
                    return Outcome(ids=None, ttft=None, how=str(status))
                while line := await reader.readline():
                    if not line.startswith(b"data: {"):
                        continue
                    event = json.loads(line[6:])
                    if event["event"] == "append" and ttft is None:
                        ttft = time.perf_counter() - began
                    if event["event"] == "final":
                        return Outcome(ids=tuple(event["token_ids"]), ttft=ttft, how="final")
                    if event["event"] == "error":
                        return Outcome(ids=None, ttft=ttft, how="error")
        except TimeoutError:
            return Outcome(ids=None, ttft=ttft, how="left" if leave_after else "hung")
        except (ConnectionError, IndexError):
            return Outcome(ids=None, ttft=ttft, how="closed")
        finally:
            writer.close()
        return Outcome(ids=None, ttft=ttft, how="cut")


@asynccontextmanager
async def serving(replicas: int) -> AsyncIterator[Server]:
    """A server of tiny/llada, until it is ended."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *(
            "-m",
            "diffulex_core",
            "serve",
            "--model",
            "tiny/llada",
            "--port",
            "0",
        ),
        *("--log-level", "info", "--max-queue", "5000", "--data-parallel-size", str(replicas)),
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    found = None
    while found is None:
        line = (await asyncio.wait_for(process.stderr.readline(), PATIENCE)).decode()
        if not line:
            raise SystemExit("The server ended before it was ready.")
        found = re.search(r"is ready at http://127\.0\.0\.1:(\d+)", line)
    reading = asyncio.create_task(drain(process.stderr))
    try:
        yield Server(process=process, port=int(found[1]))
    finally:
        if process.returncode is None:
            process.terminate()
        await asyncio.wait_for(process.wait(), PATIENCE)
        reading.cancel()


async def drain(stream: asyncio.StreamReader) -> None:
    """Read the log so that the server never waits for us."""
    while await stream.read(2**16):
        pass


def request(method: str, path: str, body: bytes) -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def bodies() -> list[dict[str, Any]]:
    return [
        {"prompt": each.prompt, "temperature": 0.0, "max_tokens": 32, "stream": True, "stream_mode": "block_append"}
        for each in problems.problems(2, "eval", PROMPTS)
    ]


def long(body: dict[str, Any]) -> dict[str, Any]:
    return {**body, "max_tokens": 300, "ignore_eos": True}


async def becomes(holds: Callable[[], Awaitable[bool]]) -> float | None:
    """Seconds until it holds; None when it does not in time."""
    began = time.monotonic()
    while time.monotonic() - began < PATIENCE:
        if await holds():
            return time.monotonic() - began
        await asyncio.sleep(0.05)
    return None


async def check_empty(server: Server, report: Report, after: str) -> None:
    async def empty() -> bool:
        state = await server.ready()
        return (
            bool(state["ready"]) and not state["requests"] and state["kv_pages"]["free"] == state["kv_pages"]["total"]
        )

    took = await becomes(empty)
    report.check(f"no request and no page is left {after}", took is not None, await server.ready())


async def under_load(server: Server, expected: list[tuple[int, ...]], options: Any, report: Report) -> None:
    """Clients that stream one request after the other; then a kill, without which nothing would be proved."""
    asked, outcomes, wrong = bodies(), list[Outcome](), 0
    began = time.monotonic()
    sizes: list[list[float]] = []

    async def client(number: int) -> None:
        nonlocal wrong
        draw = random.Random(number)
        while time.monotonic() - began < options.seconds:
            index = draw.randrange(PROMPTS)
            outcome = await server.stream(asked[index])
            outcomes.append(outcome)
            wrong += outcome.ids != expected[index]

    async def watch() -> None:
        processes = [psutil.Process(server.process.pid), *server.engines()]
        while True:
            sizes.append([each.memory_info().rss / 2**20 for each in processes])
            await asyncio.sleep(max(0.2, options.seconds / 50))

    watching = asyncio.create_task(watch())
    await asyncio.gather(*(client(number) for number in range(options.clients)))
    watching.cancel()
    seconds = time.monotonic() - began
    ttfts = sorted(each.ttft for each in outcomes if each.ttft is not None)
    warm = sizes[len(sizes) // 3]
    grown = [round(last - first, 1) for first, last in zip(warm, sizes[-1], strict=True)]
    report.numbers |= {
        "requests": len(outcomes),
        "requests_per_s": round(len(outcomes) / seconds, 1),
        "tokens_per_s": round(sum(len(each.ids or ()) for each in outcomes) / seconds, 1),
        "ttft_p50_s": round(statistics.median(ttfts), 4) if ttfts else None,
        "ttft_p99_s": round(ttfts[int(len(ttfts) * 0.99)], 4) if ttfts else None,
        "rss_mib": [round(each, 1) for each in sizes[-1]],
        "rss_growth_mib": grown,
    }
    ends = dict(Counter(each.how for each in outcomes))
    report.check("every answer equals that of the same request alone", not wrong and bool(outcomes), (wrong, ends))
    report.check(f"no process grows by more than {FLAT:g} MiB once it is warm", max(grown) <= FLAT, grown)
    await check_empty(server, report, "after the load")


async def killed(server: Server, expected: list[tuple[int, ...]], options: Any, report: Report) -> None:
    """kill -9 of an engine while clients stream."""
    asked = bodies()
    streams = [asyncio.create_task(server.stream(long(asked[n % PROMPTS]))) for n in range(options.clients)]
    await asyncio.sleep(1.0)
    victim, pages = server.engines()[0], (await server.ready())["kv_pages"]["total"]
    victim.kill()
    began = time.monotonic()
    outcomes = await asyncio.gather(*streams)
    ends = dict(Counter(each.how for each in outcomes))
    report.numbers["streams_over_after_kill_s"] = round(time.monotonic() - began, 2)
    report.check(
        "no stream hangs or is cut when its engine is killed", not {"hung", "cut", "closed"} & ends.keys(), ends
    )

    async def recovered() -> bool:
        state = await server.ready()
        return bool(state["ready"]) and state["kv_pages"]["total"] == pages and not victim.is_running()

    took = await becomes(recovered)
    report.numbers["kill_recovered_after_s"] = None if took is None else round(took, 2)
    report.check("another engine takes its place", took is not None, took)
    again = [await server.stream(body) for body in asked]
    report.check("its answers are the same", [each.ids for each in again] == expected, Counter(e.how for e in again))
    await check_empty(server, report, "after the kill")


async def cancels(server: Server, options: Any, report: Report) -> None:
    """Requests that are left at random moments."""
    draw, asked = random.Random(1), bodies()
    gate = asyncio.Semaphore(options.clients)

    async def one(number: int) -> str:
        async with gate:
            left = await server.stream(long(asked[number % PROMPTS]), leave_after=draw.uniform(0.001, 1.0))
            return left.how

    ends = Counter(await asyncio.gather(*(one(number) for number in range(options.cancels))))
    report.check(
        f"{options.cancels} requests are left at random moments", not {"cut", "error"} & ends.keys(), dict(ends)
    )
    await check_empty(server, report, "after the storm")


async def rude(server: Server, options: Any, report: Report) -> None:
    """Clients that do not read, that close their half, and that leave in the middle of a request."""
    body = json.dumps({**long(bodies()[0]), "stream_mode": "events"}).encode()
    whole = request("POST", "/generate", body)
    open_ones = []
    for number in range(options.rude):
        reader, writer = await server.connect()
        match number % 3:
            case 0:
                writer.write(whole)
            case 1:
                writer.write(whole)
                writer.write_eof()
            case 2:
                writer.write(whole[: len(whole) // 2])
                writer.write_eof()
        open_ones.append((reader, writer))
    outcome = await server.stream(bodies()[0])
    report.check("an honest client is served beside rude ones", outcome.how == "final", outcome.how)
    await asyncio.sleep(1.0)
    for _, writer in open_ones:
        writer.transport.abort()
    await check_empty(server, report, "after rude clients")


async def hostile(server: Server, options: Any, report: Report) -> None:
    """Bodies that nobody should send."""
    draw = random.Random(2)
    gate = asyncio.Semaphore(32)
    odd = [
        None,
        True,
        -1,
        10**30,
        1e308,
        "",
        "\ud800",
        [],
        {},
        [[]],
        "x" * 5000,
        {"a": [None]},
        [10**9],
        [-1],
        ["a", 1],
    ]
    names = [
        "prompt",
        "messages",
        "max_tokens",
        "temperature",
        "n",
        "stop",
        "logprobs",
        "seed",
        "tokens",
        "stream",
        "top_k",
    ]

    def body() -> bytes:
        kind = draw.randrange(3)
        if kind == 0:
            return draw.randbytes(draw.randrange(200))
        made = {
            "prompt": "Q:",
            "max_tokens": 4,
            **{draw.choice(names): draw.choice(odd) for _ in range(draw.randrange(3))},
        }
        text = json.dumps(made).encode()
        return text if kind == 1 else text[: draw.randrange(len(text))]

    async def one() -> int:
        async with gate:
            return (await server.ask("POST", draw.choice(ROUTES), body()))[0]

    statuses = Counter(await asyncio.gather(*(one() for _ in range(options.hostile))))
    bad = {status: count for status, count in statuses.items() if status >= 500 or status == 0}
    report.check(f"{options.hostile} hostile bodies make no error of the server", not bad, dict(statuses))
    outcome = await server.stream(bodies()[0])
    report.check("the server answers right afterwards", outcome.how == "final", outcome.how)
    await check_empty(server, report, "after hostile bodies")


async def load(options: Any) -> Report:
    """All of it, on one server."""
    report = Report()
    async with serving(options.replicas) as server:
        alone = [await server.stream(body) for body in bodies()]
        expected = [each.ids or () for each in alone]
        report.check("each request alone is answered", all(expected), Counter(each.how for each in alone))
        await under_load(server, expected, options, report)
        await cancels(server, options, report)
        await rude(server, options, report)
        await hostile(server, options, report)
        await killed(server, expected, options, report)
        server.process.terminate()
        status = await asyncio.wait_for(server.process.wait(), PATIENCE)
        report.check("the server ends as it was told", status == 0, status)
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--cancels", type=int, default=1000)
    parser.add_argument("--rude", type=int, default=60)
    parser.add_argument("--hostile", type=int, default=10_000)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the result to this file")
    options = parser.parse_args()
    report = asyncio.run(load(options))
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    sizes = {name: value for name, value in vars(options).items() if name != "json"}
    print(f"\n| What | Value |\n| --- | --- |\n| machine | {machine} |\n| sizes | {sizes} |")
    for name, value in report.numbers.items():
        print(f"| {name} | {value} |")
    if options.json is not None:
        checks = [{"check": what, "good": good, "seen": seen} for what, good, seen in report.checks]
        result = {"machine": machine, "sizes": sizes, "numbers": report.numbers, "checks": checks}
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if all(good for _, good, _ in report.checks) else 1


if __name__ == "__main__":
    sys.exit(main())
