"""The command line: `python -m benchmarks.serve_load run` and `python -m benchmarks.serve_load render`."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.bench.machine import commit, describe
from benchmarks.serve_load import faults, page, schema
from benchmarks.serve_load.hostile import hostile
from benchmarks.serve_load.load import ask_alone, of_manner, under_load
from benchmarks.serve_load.questions import MANNERS, questions
from benchmarks.serve_load.records import Report
from benchmarks.serve_load.server import SLOW, Server, serving

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "serve.json"
PAGE = ROOT / "docs" / "serving.md"
SCENES = ("load", "memory", "storm", "rude", "hostile", "schema", "kill")
EXAMPLES_OF = 200
"""One of so many hostile requests is as many examples as schemathesis makes of each operation."""
PAGES = 1024
"""Of each engine's cache: every one of them is in use after some seconds of load, so that memory can be flat."""
FEW_KERNELS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16", "LRU_CACHE_CAPACITY": "16"}
"""torch keeps 1,024 kernels of a kind, for as many numbers of rows; with few, what else grows is seen."""
LONGEST = 1800.0
"""Seconds after which the run is given up."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve_load", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="start a server, load it, attack it; status 1 when a check failed")
    run.add_argument("--clients", type=int, default=200, help="that stream at the same time")
    run.add_argument("--seconds", type=float, default=60.0, help="for which they do")
    run.add_argument("--cancels", type=int, default=1000, help="requests that are left at random moments")
    run.add_argument("--rude", type=int, default=60, help="clients that close their half or reset")
    run.add_argument(
        "--hostile", type=int, default=10_000, help="hostile connections and requests, schemathesis' among them"
    )
    run.add_argument("--replicas", type=int, default=1, help="engines behind the server")
    run.add_argument("--seed", type=int, default=1)
    run.add_argument("--only", nargs="+", choices=SCENES, default=SCENES, help="leave the other scenes out")
    run.add_argument(
        "--out", type=Path, help="write the result to this file; benchmarks/results/serve.json is rendered"
    )
    render = commands.add_parser("render", help="write the report into docs/serving.md")
    render.add_argument("results", type=Path, nargs="?", default=RESULTS)
    options = parser.parse_args()
    if options.command == "render":
        page.write(options.results, PAGE)
        return 0
    sizes = {name: value for name, value in vars(options).items() if name not in ("command", "out", "only")}
    report = Report(about=about(), sizes=sizes)
    try:
        asyncio.run(asyncio.wait_for(everything(options, report), LONGEST))
    finally:
        print(f"\n{page.render(report)}")
        if options.out is not None:
            options.out.write_text(report.to_json())
    return 0 if report.good else 1


def about() -> dict[str, Any]:
    """The machine, the commit and the versions that count."""
    machine = describe(1)
    packages = ("torch", "transformers", "uvicorn", "fastapi", "pyzmq", "msgpack")
    return {
        "commit": commit(ROOT),
        "when": datetime.now(UTC).date().isoformat(),
        "machine": f"{machine['cores']} cores of {machine['cpu']}, {machine['system']}",
        "Python": machine["python"],
        **{name: metadata.version(name) for name in packages},
    }


async def everything(options: argparse.Namespace, report: Report) -> None:
    """All scenes that were asked for."""
    common = ("--data-parallel-size", str(options.replicas), "--num-pages", str(PAGES))
    if {"load", "storm", "rude", "kill"} & set(options.only):
        async with serving(common) as server:
            await honest(server, options, report)
            report.check("the server ends as it was told", await server.stop() == 0, server.process.returncode)
    if "memory" in options.only:
        async with serving(common, FEW_KERNELS) as server:
            await memory(server, options, report)
    if {"hostile", "schema"} & set(options.only):
        # Of its own, as it waits a shorter time for slow senders, and others should not pay for what was measured.
        async with serving((*common, "--head-timeout", f"{SLOW:g}", "--body-timeout", f"{SLOW:g}")) as server:
            await attacks(server, options, report)
            report.check("the attacked server ends as it was told", await server.stop() == 0, server.process.returncode)
    report.complete = set(options.only) == set(SCENES)


async def honest(server: Server, options: argparse.Namespace, report: Report) -> None:
    """Load and faults."""
    expected = await ask_alone(server, questions(), report)
    files = server.files()
    if "load" in options.only:
        whole = f"{options.clients} clients"
        scenes = [
            *((f"one client, {manner}", 1, of_manner(expected, manner), options.seconds / 6) for manner in MANNERS),
            (whole, options.clients, expected, options.seconds),
            *(
                (f"{whole}, {manner}", options.clients, of_manner(expected, manner), options.seconds / 6)
                for manner in MANNERS
            ),
        ]
        for scene, clients, asked, seconds in scenes:
            await under_load(server, asked, report, scene=scene, clients=clients, seconds=seconds, files=files)
    if "storm" in options.only:
        await faults.storm(server, expected, report, clients=options.clients, cancels=options.cancels, files=files)
    if "rude" in options.only:
        await faults.rude(server, expected, report, count=options.rude, files=files)
        await faults.unread(server, expected, report, files=files)
    if "kill" in options.only:
        await faults.killed(server, expected, report, clients=options.clients, files=files)


async def memory(server: Server, options: argparse.Namespace, report: Report) -> None:
    """Load on engines that keep few kernels."""
    expected = await ask_alone(server, questions(), report)
    sizes = {"clients": options.clients, "seconds": options.seconds, "files": server.files()}
    await under_load(server, expected, report, scene=f"{options.clients} clients, few kernels kept", flat=True, **sizes)


async def attacks(server: Server, options: argparse.Namespace, report: Report) -> None:
    """What nobody should send."""
    expected = await ask_alone(server, questions(), report)
    files, began = server.files(), time.monotonic()
    sent = 0
    if "schema" in options.only:
        examples = max(1, options.hostile // EXAMPLES_OF)
        sent = await schema.explore(server, expected, report, examples=examples, seed=options.seed, files=files)
    if "hostile" in options.only:
        await hostile(
            server,
            expected,
            report,
            count=max(options.hostile - sent, options.hostile // 2),
            seed=options.seed,
            files=files,
        )
    print(f"     attacks: {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
