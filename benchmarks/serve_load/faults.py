"""Clients that leave, that do not read, that close their half, and an engine that is killed."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter

from benchmarks.serve_load.load import Expected
from benchmarks.serve_load.questions import LONG, read
from benchmarks.serve_load.records import Report
from benchmarks.serve_load.server import Server, becomes, check_empty, request

SLOW_READERS = 8
ROOM = 4096
"""Bytes that may wait for a client that does not read."""
LAST_LEAVE = 1.0
"""Seconds after which the last of those that leave has left."""


async def storm(server: Server, expected: Expected, report: Report, *, clients: int, cancels: int, files: int) -> None:
    """Requests that are left at random moments, so many at the same time."""
    draw = random.Random(1)
    gate = asyncio.Semaphore(clients)
    moments = [draw.uniform(0.001, LAST_LEAVE) for _ in range(cancels)]

    async def one(number: int) -> str:
        async with gate:
            question = expected.questions[number % len(expected.questions)]
            return (await read(server, question, leave_after=moments[number], **LONG)).how

    began = time.monotonic()
    ends = Counter(await asyncio.gather(*(one(number) for number in range(cancels))))
    report.numbers["cancel storm"] = {"requests": cancels, "seconds": round(time.monotonic() - began, 2)}
    left = not set(ends) - {"left", "final"} and ends["left"] > cancels / 2
    report.check(f"{cancels} requests are left at random moments, the rest is answered", left, dict(ends))
    await check_honest(server, expected, report, "after the storm")
    await check_empty(server, report, "after the storm", files=files)


async def rude(server: Server, expected: Expected, report: Report, *, count: int, files: int) -> None:
    """Clients that close their half behind a request or in the middle of one, and some that leave by a reset."""
    draw, writers = random.Random(2), []
    for number in range(count):
        whole = expected.questions[number % len(expected.questions)].as_bytes(**LONG)
        _, writer = await server.connect()
        match number % 4:
            case 0:
                writer.write(whole)
                writer.write_eof()
            case 1:
                writer.write(whole[: draw.randrange(1, len(whole))])
                writer.write_eof()
            case 2:
                writer.write(whole[: draw.randrange(1, len(whole))])
            case 3:
                writer.write(whole)
                await asyncio.sleep(0)
                writer.transport.abort()
        writers.append(writer)
    await check_honest(server, expected, report, f"beside {count} clients with half-closed or dead sockets")
    await asyncio.sleep(1.0)
    for writer in writers:
        writer.transport.abort()
    await check_empty(server, report, "after half-closed sockets", files=files)


async def unread(server: Server, expected: Expected, report: Report, *, files: int) -> None:
    """Clients that ask for much and read nothing: their answers end and free their pages all the same."""
    body = {
        "prompt": expected.questions[0].body["prompt"],
        "n": 16,
        "stream": True,
        "logprobs": 5,
        "temperature": 0.0,
        **LONG,
    }
    whole = request("POST", "/v1/completions", json.dumps(body).encode())
    writers = []
    for _ in range(SLOW_READERS):
        _, writer = await server.connect(room=ROOM)
        writer.write(whole)
        writers.append(writer)
    await check_honest(server, expected, report, f"beside {SLOW_READERS} clients that read nothing")

    async def free() -> bool:
        pages = (await server.state())["kv_pages"]
        return bool(pages["free"] == pages["total"])

    took = await becomes(free)
    state = await server.state()
    seen = f"{state['kv_pages']['free']} of {state['kv_pages']['total']} pages free after {took or 0:.1f} s"
    report.check("clients that read nothing keep no pages", took is not None, seen)
    for writer in writers:
        writer.transport.abort()
    await check_empty(server, report, "after clients that read nothing", files=files)


async def killed(server: Server, expected: Expected, report: Report, *, clients: int, files: int) -> None:
    """kill -9 of an engine while clients stream."""
    questions = expected.questions
    streams = [
        asyncio.create_task(read(server, questions[number % len(questions)], **LONG)) for number in range(clients)
    ]
    await asyncio.sleep(1.0)
    victim, pages = server.engines()[0], (await server.state())["kv_pages"]["total"]
    victim.kill()
    began = time.monotonic()
    outcomes = await asyncio.gather(*streams)
    ends = Counter(outcome.how for outcome in outcomes)
    numbers = report.numbers["kill -9 of an engine"] = {"streams_ended_after_s": round(time.monotonic() - began, 2)}
    good = ends["error"] > 0 and not {"hung", "cut", "closed"} & set(ends)
    report.check("every stream of a killed engine ends with an error event, none hangs or is cut", good, dict(ends))

    async def recovered() -> bool:
        state = await server.state()
        return bool(state["ready"]) and state["kv_pages"]["total"] == pages and not victim.is_running()

    took = await becomes(recovered)
    if took is not None:
        numbers["ready_again_after_s"] = round(time.monotonic() - began, 2)
    report.check("another engine takes its place", took is not None, numbers)
    again = [await read(server, question) for question in questions]
    same = [outcome.answer for outcome in again] == list(expected.answers)
    report.check("its answers are the same", same, dict(Counter(outcome.how for outcome in again)))
    await check_empty(server, report, "after the kill", files=files)


async def check_honest(server: Server, expected: Expected, report: Report, when: str) -> None:
    """A question is answered as when it was asked alone."""
    outcomes = [await read(server, question) for question in expected.questions[:3]]
    good = [outcome.answer for outcome in outcomes] == list(expected.answers[:3])
    seconds = max(outcome.seconds for outcome in outcomes)
    how = dict(Counter(outcome.how for outcome in outcomes))
    report.check(f"honest clients are answered {when}", good, f"{how}, the slowest after {seconds:.2f} s")
