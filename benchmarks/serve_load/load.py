"""Clients that stream one answer after the other, all of them at the same time; every answer is compared."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import psutil
from benchmarks.serve_load.questions import MANNERS, Outcome, Question, read
from benchmarks.serve_load.records import Report
from benchmarks.serve_load.server import Server, check_empty

FLAT = 16.0
"""MiB by which a process may grow under load once it is warm."""
WARM = 1 / 3
"""Share of the time after which a process is warm."""


@attrs.frozen(kw_only=True)
class Expected:
    """Questions, and the answer of each when nothing else is asked."""

    questions: Sequence[Question]
    answers: Sequence[tuple[str, Any]]


async def ask_alone(server: Server, questions: Sequence[Question], report: Report) -> Expected:
    """Every question alone, one after the other, and twice."""
    rounds = [[await read(server, question) for question in questions] for _ in range(2)]
    answers = [[outcome.answer for outcome in outcomes] for outcomes in rounds]
    ends = Counter(outcome.how for outcomes in rounds for outcome in outcomes)
    report.check("each request alone is answered, twice the same", answers[0] == answers[1], dict(ends))
    return Expected(questions=questions, answers=[answer or ("", ()) for answer in answers[1]])


async def under_load(
    server: Server,
    expected: Expected,
    report: Report,
    *,
    scene: str,
    clients: int,
    seconds: float,
    files: int,
    flat: bool = False,
) -> None:
    """So many clients for so long; each asks anew as soon as it has its answer.

    Args:
        flat: whether the engines must not grow either. They keep a kernel for each number of rows that they ever
            multiplied, up to a number of them, so that only engines that may keep few are flat from the beginning.
    """
    outcomes, wrong = list[Outcome](), 0
    began = time.monotonic()
    sizes: list[list[float]] = []
    processes = {
        "frontend": psutil.Process(server.process.pid),
        **{f"engine {index}": process for index, process in enumerate(server.engines())},
        "clients": psutil.Process(),
    }
    served = [process for name, process in processes.items() if name != "clients"]
    spent = {name: _seconds(process) for name, process in processes.items()}

    async def client(number: int) -> None:
        nonlocal wrong
        draw = random.Random(number)
        while time.monotonic() - began < seconds:
            index = draw.randrange(len(expected.questions))
            outcome = await read(server, expected.questions[index])
            outcomes.append(outcome)
            wrong += outcome.answer != expected.answers[index]

    async def watch() -> None:
        told = 0.0
        while True:
            sizes.append([process.memory_info().rss / 2**20 for process in served])
            passed = time.monotonic() - began
            if passed - told >= 10:
                told = passed
                print(f"     {scene}: {passed:.0f} of {seconds:.0f} s, {len(outcomes)} answers", flush=True)
            await asyncio.sleep(max(0.2, seconds / 60))

    watching = asyncio.create_task(watch())
    await asyncio.gather(*(client(number) for number in range(clients)))
    watching.cancel()
    passed = time.monotonic() - began
    spent = {name: _seconds(process) - spent[name] for name, process in processes.items()}
    ends = dict(Counter(outcome.how for outcome in outcomes))
    report.numbers[scene] = figures(outcomes, passed, spent) | {"clients": clients}
    report.check(
        f"{scene}: every answer equals that of the same request alone",
        not wrong and set(ends) == {"final"},
        f"{len(outcomes)} answers, {wrong} differ, {ends}",
    )
    grown = _growth(sizes)
    report.numbers[scene]["rss_mib"] = [round(size, 1) for size in sizes[-1]]
    watched = grown if flat else grown[:1]
    which = "no process grows" if flat else "the frontend does not grow"
    report.check(f"{scene}: {which} by more than {FLAT:g} MiB once it is warm", max(watched) <= FLAT, grown)
    await check_empty(server, report, f"after {scene}", files=files)


def figures(outcomes: Sequence[Outcome], seconds: float, spent: Mapping[str, float]) -> dict[str, Any]:
    """What a scene measured; times in seconds, `cpu_s` those that processes spent computing."""
    tokens = sum(outcome.tokens for outcome in outcomes)
    found = {
        "seconds": round(seconds, 2),
        "requests": len(outcomes),
        "requests_per_s": round(len(outcomes) / seconds, 1),
        "tokens": tokens,
        "tokens_per_s": round(tokens / seconds, 1),
        "cpu_s": {name: round(each, 2) for name, each in spent.items()},
        "frontend_us_per_token": round(spent["frontend"] / tokens * 1e6, 1) if tokens else None,
    }
    for name, values in (
        ("ttft", [outcome.ttft for outcome in outcomes if outcome.ttft is not None]),
        ("answer", [outcome.seconds for outcome in outcomes]),
    ):
        found |= {f"{name}_p50_s": percentile(values, 50), f"{name}_p99_s": percentile(values, 99)}
    return found


def percentile(values: Sequence[float], percent: int) -> float | None:
    """The value below or at which so many of them lie; None of none."""
    if not values:
        return None
    if len(values) == 1:
        return round(values[0], 4)
    return round(statistics.quantiles(values, n=100, method="inclusive")[percent - 1], 4)


def of_manner(expected: Expected, manner: str) -> Expected:
    """The questions of one manner of client."""
    assert manner in MANNERS
    kept = [index for index, question in enumerate(expected.questions) if question.manner == manner]
    return Expected(
        questions=[expected.questions[index] for index in kept], answers=[expected.answers[index] for index in kept]
    )


def _growth(sizes: Sequence[Sequence[float]]) -> list[float]:
    """MiB by which each process grew from the time when it was warm until the end."""
    warm = sizes[int(len(sizes) * WARM)]
    return [round(last - first, 1) for first, last in zip(warm, sizes[-1], strict=True)]


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
