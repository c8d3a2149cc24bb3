"""What schemathesis makes of the server's OpenAPI document: requests that fit it, and many that do not."""

from __future__ import annotations

import asyncio
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmarks.serve_load.faults import check_honest
from benchmarks.serve_load.hostile import LONGEST, check_unharmed
from benchmarks.serve_load.load import Expected
from benchmarks.serve_load.records import Report
from benchmarks.serve_load.server import Server, check_empty

CHECKS = ("not_a_server_error",)
MOST_SECONDS = 600.0
_CASES = re.compile(r"^ *(\d+) generated", re.MULTILINE)
_COUNTED = re.compile(r'^diffulex_http_requests_total\{route="([^"]*)",status="(\d+)"\} ([0-9.]+)', re.MULTILINE)


async def explore(server: Server, expected: Expected, report: Report, *, examples: int, seed: int, files: int) -> int:
    """Let schemathesis try every operation, with so many examples of each; how many requests it sent.

    Raises:
        SystemExit: it is not installed, or does not run.
    """
    engines = [engine.pid for engine in server.engines()]
    server.odd_lines.clear()
    before, began = await _counted(server), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        told, status = await _run(
            *("--no-color", "run", f"http://127.0.0.1:{server.port}/openapi.json", "--checks", ",".join(CHECKS)),
            *("--seed", str(seed), "--max-examples", str(examples), "--request-timeout", str(LONGEST)),
            *("--continue-on-failure", "--no-shrink", "--suppress-health-check", "all", "--warnings", "off"),
            folder=folder,
        )
    cases = _CASES.search(told)
    if cases is None:
        raise SystemExit(f"schemathesis did not run:\n{told[-2000:]}")
    answered = await _counted(server) - before
    statuses = Counter[str]()
    for (_, answer), count in answered.items():
        statuses[answer] += count
    report.numbers["schemathesis"] = {
        "requests": int(cases[1]),
        "seconds": round(time.monotonic() - began, 1),
        "routes": len({route for route, _ in answered}),
        "answers": dict(sorted(statuses.items())),
    }
    failed = {status: count for status, count in statuses.items() if status.startswith("5") or status == "0"}
    good = status == 0 and not failed
    seen = f"{int(cases[1])} requests, {failed or 'no'} errors of the server"
    if not good:
        print(told[-6000:], flush=True)
    report.check(f"schemathesis: {', '.join(CHECKS)}", good, seen)
    check_unharmed(server, report, engines)
    await check_honest(server, expected, report, "after schemathesis")
    await check_empty(server, report, "after schemathesis", files=files)
    return int(cases[1])


async def _run(*arguments: str, folder: str) -> tuple[str, int]:
    """Output and status of schemathesis, which keeps its files in this folder."""
    program = Path(sys.executable).with_name("schemathesis")
    if not program.exists():
        raise SystemExit("schemathesis is not installed: `nox -s load` brings it, or `pip install schemathesis`.")
    process = await asyncio.create_subprocess_exec(
        program, *arguments, cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        told, _ = await asyncio.wait_for(process.communicate(), MOST_SECONDS)
    finally:
        if process.returncode is None:
            process.kill()
    return told.decode(errors="replace"), process.returncode or 0


async def _counted(server: Server) -> Counter[tuple[str, str]]:
    """Requests that the application answered so far, by route and status."""
    text = (await server.ask("GET", "/metrics"))[1].decode()
    return Counter({(route, status): int(float(count)) for route, status, count in _COUNTED.findall(text)})
