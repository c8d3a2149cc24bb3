"""The benchmark's command line: `python -m benchmarks.bench run` and `python -m benchmarks.bench render`."""

from __future__ import annotations

import argparse
import functools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from benchmarks.bench.anatomy import anatomy_cells, measure_anatomy
from benchmarks.bench.cells import Cell, choose, default_cells, llamacpp_cells, smoke_cells, unsampled
from benchmarks.bench.child import ChildFailed, call_in_child
from benchmarks.bench.gemma import measure_gemma
from benchmarks.bench.imports import measure_imports
from benchmarks.bench.machine import (
    BusyMachine,
    T,
    check_idle,
    commit,
    describe,
    patiently,
    read_clock,
    wait_until_idle,
)
from benchmarks.bench.picture import draw
from benchmarks.bench.render import page
from benchmarks.bench.results import Outcome, Report
from benchmarks.bench.session import Session, Settings
from benchmarks.bench.trained import MODELS, measure_trained
from benchmarks.bench.turns import DifferentTokens
from rich.console import Console

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
HOST = RESULTS / "host.json"
ANATOMY = RESULTS / "anatomy.json"
PAGE = ROOT / "docs" / "performance.md"
PICTURE = ROOT / "docs" / "performance.png"
TRIES = 4
"""How often a cell is measured at most when other processes run meanwhile."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure, and write the results")
    anatomy = commands.add_parser("anatomy", help="say where the time of a step goes")
    run.add_argument(
        "--out", type=Path, help="where the results go; benchmarks/results/cpu.json, or build with --smoke"
    )
    anatomy.add_argument("--out", type=Path, default=ANATOMY, help="where the results go")
    for command, rounds in ((run, 5), (anatomy, 9)):
        command.add_argument("--rounds", type=int, default=rounds)
        command.add_argument("--threads", type=int, default=psutil.cpu_count(logical=False) or 1)
        command.add_argument("--busy-ok", action="store_true", help="measure on a busy machine; marked as not citable")
        command.add_argument("--folder", type=Path, help="keep the checkpoints here instead of writing them anew")
    run.add_argument("--only", nargs="+", default=[], help="cells whose name holds one of these")
    run.add_argument("--list", action="store_true", help="name the cells and stop")
    run.add_argument("--smoke", action="store_true", help="a network that takes no time, to see that all works")
    run.add_argument("--full", action="store_true", help="all steps of the slow contender, not a sample of them")
    run.add_argument("--seconds", type=float, default=45, help="no further round of a cell begins after so many")
    run.add_argument("--no-trained", action="store_true", help="leave the trained checkpoints out")
    run.add_argument("--llama-cli", type=Path, help="compare with llama.cpp, too: path of llama-diffusion-cli")
    run.add_argument("--no-gemma", action="store_true", help="leave DiffusionGemma out")
    render = commands.add_parser("render", help="write docs/performance.md and its picture from results")
    render.add_argument("results", type=Path, nargs="?", default=RESULTS / "cpu.json")
    arguments = parser.parse_args()
    if arguments.command == "render":
        return render_page(arguments.results)
    if arguments.command == "anatomy":
        return dissect(arguments)
    arguments.out = arguments.out or (ROOT / "build" / "smoke.json" if arguments.smoke else RESULTS / "cpu.json")
    cells = [*(smoke_cells() if arguments.smoke else default_cells())]
    if arguments.llama_cli is not None:
        if not arguments.llama_cli.is_file():
            parser.error(
                f"--llama-cli: there is no file {arguments.llama_cli}; docs/benchmarks.md says how to build it"
            )
        cells += llamacpp_cells(str(arguments.llama_cli.resolve()), smoke=arguments.smoke)
    try:
        cells = choose(cells, arguments.only)
    except ValueError as error:
        parser.error(str(error))
    if arguments.full:
        cells = [unsampled(cell) for cell in cells]
    if arguments.list:
        print("\n".join(cell.name for cell in cells))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        settings = Settings(
            threads=arguments.threads,
            rounds=arguments.rounds,
            warmups=1,
            seconds=arguments.seconds,
            busy_ok=arguments.busy_ok,
            folder=arguments.folder or Path(scratch),
        )
        try:
            report = measure(cells, settings, arguments)
        except (BusyMachine, ChildFailed, DifferentTokens) as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            return 1
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(report.to_json())
    Console().print(f"Wrote {arguments.out}.")
    return 1 if report.failures else 0


def measure(cells: Sequence[Cell], settings: Settings, arguments: argparse.Namespace) -> Report:
    """Everything that was asked for; what is done is written down after each cell, so that a break loses little."""
    before = read_clock(time.perf_counter)
    time.sleep(2)
    check_idle(before.others_until(read_clock(time.perf_counter), psutil.cpu_count() or 1), busy_ok=settings.busy_ok)
    began = datetime.now(UTC).isoformat(timespec="seconds")
    machine = describe(settings.threads)
    cores = range(settings.threads)
    limits = (
        {}
        if arguments.smoke
        else call_in_child("benchmarks.bench.limits:measure_limits", threads=settings.threads, cores=cores)
    )
    imports = {} if arguments.smoke else measure_imports()
    outcomes, failures = list[Outcome](), dict[str, str]()
    console = Console()

    def wait() -> None:
        wait_until_idle(seconds=600, now=time.perf_counter, sleep=time.sleep)

    def tell(text: str) -> None:
        console.print(text, markup=False)

    def patient(run: Callable[[], T]) -> T:
        return patiently(run, tries=TRIES, wait=wait, tell=tell)

    trained = list[dict[str, Any]]()
    for model in () if arguments.no_trained or arguments.smoke else MODELS:
        ways = patient(functools.partial(measure_trained, settings, model))
        trained += [{**way, "commit": commit(ROOT)} for way in ways]
    gemma = [] if arguments.no_gemma or arguments.smoke else patient(lambda: measure_gemma(settings))

    def report() -> Report:
        return Report(
            commit=commit(ROOT),
            began=began,
            machine=machine,
            limits=limits,
            imports=imports,
            trained=trained,
            gemma=gemma,
            outcomes=outcomes,
            failures=failures,
        )

    with Session(settings, limits or None) as session:
        for cell in sorted(cells, key=lambda cell: cell.network):
            try:
                outcomes.append(patient(functools.partial(session.run, cell)))
            except (BusyMachine, ChildFailed, DifferentTokens) as error:
                failures[cell.name] = f"{type(error).__name__}: {error}"
                console.print(f"{cell.name}: {failures[cell.name]}", markup=False)
                session.dismiss()
                continue
            for contended in outcomes[-1].contenders:
                faster = outcomes[-1].faster(contended)
                console.print(
                    f"{cell.name}: {contended.name}: {1 / sorted(contended.per_token)[len(contended.wall) // 2]:.1f} "
                    f"tokens/s, x{faster.median:.2f} ({faster.low:.2f} to {faster.high:.2f}), "
                    f"others {outcomes[-1].others:.0%}"
                )
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.with_suffix(".partial.json").write_text(report().to_json())
    arguments.out.with_suffix(".partial.json").unlink(missing_ok=True)
    return report()


def dissect(arguments: argparse.Namespace) -> int:
    """Measure and write down where the time of steps goes."""
    console, found = Console(), list[dict[str, Any]]()
    began = datetime.now(UTC).isoformat(timespec="seconds")
    with tempfile.TemporaryDirectory() as scratch:
        for cell in anatomy_cells():
            before = read_clock(time.perf_counter)
            found.append(
                measure_anatomy(
                    cell,
                    folder=arguments.folder or Path(scratch),
                    rounds=arguments.rounds,
                    threads=arguments.threads,
                )
            )
            others = before.others_until(read_clock(time.perf_counter), psutil.cpu_count() or 1)
            try:
                found[-1]["citable"] = check_idle(others, busy_ok=arguments.busy_ok)
            except BusyMachine as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr)
                return 1
            console.print(f"{cell.name}: done, others {others:.0%}", markup=False)
    results = {"commit": commit(ROOT), "began": began, "machine": describe(arguments.threads), "cells": found}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    console.print(f"Wrote {arguments.out}.")
    return 0


def render_page(results: Path) -> int:
    """Write the page and its picture."""
    try:
        report = Report.read(results)
    except (OSError, ValueError, json.JSONDecodeError) as error:
        print(error, file=sys.stderr)
        return 1
    drawn = draw(report, PICTURE)
    host, anatomy = (json.loads(each.read_text()) if each.exists() else None for each in (HOST, ANATOMY))
    picture = PICTURE.name if drawn else None
    PAGE.write_text(page(report, results=results.name, picture=picture, host=host, anatomy=anatomy))
    Console().print(f"Wrote {PAGE}{f' and {PICTURE}' if drawn else ''}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
