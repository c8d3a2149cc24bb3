"""Very many attacks, and what the server makes of each."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections import Counter

import attrs
from benchmarks.serve_load.attacks import QUICK, SLOW, Attack
from benchmarks.serve_load.faults import check_honest
from benchmarks.serve_load.load import Expected
from benchmarks.serve_load.records import Report
from benchmarks.serve_load.server import Server, check_empty

AT_ONCE = 32
SLOW_SHARE = 50
"""Every so many attacks one is slow."""
HONEST_EVERY = 1000
"""Attacks after which an honest client asks."""
LONGEST = 30.0
"""Seconds after which a connection hangs: far more than the server may wait for any part of a request."""
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
_TRACE = re.compile(rb"Traceback|File \"|\.py\b")


@attrs.frozen(kw_only=True)
class Seen:
    """How a server met an attack.

    Attributes:
        statuses: of its answers, in order.
        hung: whether the connection was still open when patience ended.
        told: what it told of its inside.
        seconds: until the connection was closed.
    """

    statuses: tuple[int, ...]
    hung: bool
    told: bytes
    seconds: float

    def fault(self, attack: Attack) -> str | None:
        """What the server did wrong; None for nothing."""
        if self.hung:
            return f"hung after {list(self.statuses)}"
        failed = [status for status in self.statuses if status >= 500]
        if failed:
            return f"status {failed[0]}"
        answers = [status for status in self.statuses if status >= 200]
        if len(answers) < attack.owed:
            return f"{len(answers)} of {attack.owed} answers"
        return f"told {self.told!r}" if self.told else None


async def meet(port: int, attack: Attack, *, longest: float = LONGEST) -> Seen:
    """Attack a server on the loopback interface and read what it says until it closes the connection."""
    began = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received, hung = b"", False

    async def send() -> None:
        for piece in attack.pieces:
            writer.write(piece)
            await writer.drain()
            if attack.pause:
                await asyncio.sleep(attack.pause)
        if attack.half_close:
            writer.write_eof()

    sending = asyncio.create_task(send())
    try:
        async with asyncio.timeout(longest):
            while piece := await reader.read(2**16):
                received += piece
    except TimeoutError:
        hung = True
    except ConnectionError:
        pass
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        writer.transport.abort()
    trace = _TRACE.search(received)
    return Seen(
        statuses=tuple(int(status) for status in _STATUS.findall(received)),
        hung=hung,
        told=b"" if trace is None else received[max(0, trace.start() - 40) : trace.end() + 40],
        seconds=time.monotonic() - began,
    )


async def hostile(server: Server, expected: Expected, report: Report, *, count: int, seed: int, files: int) -> None:
    """So many attacks, some at a time, of all kinds in turn."""
    engines = [engine.pid for engine in server.engines()]
    server.odd_lines.clear()
    gate, began = asyncio.Semaphore(AT_ONCE), time.monotonic()
    statuses, faults, slowest = Counter[str](), Counter[str](), 0.0

    async def one(number: int) -> None:
        nonlocal slowest
        draw = random.Random(f"{seed} {number}")
        slow = number % SLOW_SHARE == 0
        kind = SLOW[number // SLOW_SHARE % len(SLOW)] if slow else QUICK[number % len(QUICK)]
        attack = kind(draw)
        async with gate:
            seen = await meet(server.port, attack)
        statuses.update(map(str, seen.statuses or ("closed",)))
        fault = seen.fault(attack)
        if fault is not None:
            faults[f"{kind.__name__}: {fault}"] += 1
            if faults[f"{kind.__name__}: {fault}"] == 1:
                print(f"     attack {number} of seed {seed}, {kind.__name__}: {fault}", flush=True)
        if not slow:
            slowest = max(slowest, seen.seconds)

    for first in range(0, count, HONEST_EVERY):
        await asyncio.gather(*(one(number) for number in range(first, min(first + HONEST_EVERY, count))))
        done = min(first + HONEST_EVERY, count)
        await check_honest(server, expected, report, f"after {done} attacks")
    report.numbers["hostile requests"] = {
        "connections": count,
        "seconds": round(time.monotonic() - began, 1),
        "answers": dict(sorted(statuses.items())),
        "slowest_answer_s": round(slowest, 2),
    }
    report.check(f"{count} hostile connections: no 5xx, no hang, nothing told of the inside", not faults, dict(faults))
    check_unharmed(server, report, engines)
    await check_empty(server, report, "after the attacks", files=files)


def check_unharmed(server: Server, report: Report, engines: list[int]) -> None:
    """The engines are those from before, and the log tells of nothing that nobody expected."""
    now = [engine.pid for engine in server.engines()]
    report.check("no engine died of it", now == engines, f"{len(now)} engines, the same: {now == engines}")
    report.check("the log holds no stack trace", not server.odd_lines, list(server.odd_lines)[:5])
