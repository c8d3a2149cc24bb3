"""Host time of a step with 64 running requests: everything but network and sampler, whose time stands beside it.

Run: python benchmarks/host.py [--steps N] [--rounds N] [--against CHECKOUT] [--json FILE]. The network is none, and
requests run in steady state with all blocks of their buffer, and one position of each block is decided in a step.
Every number is of a single thread, by the wall and of its processor time, which a busy machine disturbs less.
`--against` takes turns with another checkout of this repository, in processes of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import attrs
from rich.console import Console
from rich.table import Table

REQUESTS = 64
STAGES = ("schedule", "pack", "update", "record")
"""Of the host's time: planning with page work, laying rows out, applying decisions with page work, and records."""


@attrs.frozen(kw_only=True)
class Shape:
    """What the requests look like."""

    block_size: int
    prompt: int
    buffer_size: int = 4

    @property
    def label(self) -> str:
        return f"{self.buffer_size} blocks of {self.block_size}, prompt {self.prompt}"


SHAPES = [Shape(block_size=block_size, prompt=prompt) for block_size in (32, 4) for prompt in (256, 1024, 4096)]


def step_times(shape: Shape, steps: int, *, pages: bool) -> dict[str, dict[str, list[float]]]:
    """Microseconds of each stage in each step, by clock.

    Args:
        pages: a stage "pages", at the price of slower stages around it.
    """
    import host_parts
    import torch

    from diffulex_core.engine import Diffulex
    from diffulex_core.host import Host
    from diffulex_core.sampling_params import SamplingParams
    from diffulex_core.testing.checkpoints import write_checkpoint
    from diffulex_core.testing.reference import plugin as kit
    from diffulex_core.testing.subjects import FamilySubject

    torch.set_num_threads(1)
    host = Host.discover([], extra=[kit, host_parts])
    entry = host.models.entry(kit.FAMILY)
    assert entry.descriptor.tiny is not None
    family = FamilySubject(host=host, entry=entry, config=host.load(entry.descriptor.tiny, provenance=entry.provenance))
    answer = shape.block_size * (shape.buffer_size + steps)
    params = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=answer)
    times: dict[str, dict[str, list[float]]] = {"wall": {}, "cpu": {}}
    with TemporaryDirectory() as folder:
        write_checkpoint(family, Path(folder))
        engine = Diffulex(
            folder,
            host=host,
            executor=host_parts.EXECUTOR,
            load_format="dummy",
            model_name=kit.FAMILY,
            decoding_strategy="kit_blocks",
            block_size=shape.block_size,
            buffer_size=shape.buffer_size,
            page_size=32,
            max_model_len=shape.prompt + answer,
            max_num_reqs=REQUESTS,
            max_num_batched_tokens=32768,
            add_block_threshold=0.0,
            semi_complete_threshold=0.0,
            skip_warmup=True,
        )
    with engine:
        clocks = host_parts.put_on_clocks(engine, pages=pages)
        for request in range(REQUESTS):
            engine.add_request([(7 * at * at + 13 * at + 31 * request) % 90 for at in range(shape.prompt)], params)
        while True:
            plan = engine.step().plan
            assert plan is not None
            rows = shape.buffer_size * shape.block_size
            if len(plan.windows) == REQUESTS and all(len(window.span.tokens) == rows for window in plan.windows):
                break
        for _ in range(steps):
            clocks.read()
            with clocks.on("step"):
                engine.step()
            for clock, read in zip(times, clocks.read(), strict=True):
                stages = _stages(read)
                for stage, nanoseconds in stages.items():
                    times[clock].setdefault(stage, []).append(nanoseconds / 1000)
    return times


def _stages(read: Mapping[str, int]) -> dict[str, int]:
    """The host's stages, of what the clocks say; "host" is their sum."""
    apart = read["forward"] + read["sampler"]
    return {
        "schedule": read["schedule"],
        "pack": read["execute"] - apart,
        "update": read["update"],
        "record": read["step"] - read["schedule"] - read["execute"] - read["update"],
        "host": read["step"] - apart,
        "sampler": read["sampler"],
        **({"pages": read["pages"]} if "pages" in read else {}),
    }


def child(checkout: Path, shape: Shape, steps: int, *, pages: bool) -> dict[str, dict[str, list[float]]]:
    """`step_times` in a fresh process that imports a checkout's core."""
    command = [sys.executable, __file__, "--child", json.dumps([attrs.asdict(shape), steps, pages])]
    environ = {**os.environ, "PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environ, stdout=subprocess.PIPE, text=True, check=True)
    times: dict[str, dict[str, list[float]]] = json.loads(done.stdout.splitlines()[-1])
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--against", type=Path, help="another checkout, measured in turns with this one")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        shape, steps, pages = json.loads(arguments.child)
        print(json.dumps(step_times(Shape(**shape), steps, pages=pages)))
        return
    checkouts = {"this": Path(__file__).parents[1]}
    if arguments.against is not None:
        checkouts["other"] = arguments.against.resolve()
    results = [measure(shape, checkouts, arguments.steps, arguments.rounds) for shape in SHAPES]
    show(results)
    if arguments.json is not None:
        facts = {"requests": REQUESTS, "steps": arguments.steps, "rounds": arguments.rounds, "load": os.getloadavg()}
        arguments.json.write_text(json.dumps({**facts, "unit": "us", "shapes": results}, indent=1) + "\n")


def measure(shape: Shape, checkouts: Mapping[str, Path], steps: int, rounds: int) -> dict[str, Any]:
    """Medians of one shape over all steps of all rounds, for each checkout and clock."""
    runs: dict[str, list[dict[str, dict[str, list[float]]]]] = {name: [] for name in checkouts}
    for _ in range(rounds):
        for name, checkout in checkouts.items():
            runs[name].append(child(checkout, shape, steps, pages=False))
    result: dict[str, Any] = {"shape": attrs.asdict(shape), "label": shape.label}
    for name, checkout in checkouts.items():
        result[name] = {clock: _medians([run[clock] for run in runs[name]]) for clock in ("wall", "cpu")}
        paged = child(checkout, shape, steps, pages=True)
        result[name]["cpu"]["pages, on a clock of its own"] = _spread(paged["cpu"]["pages"])
    return result


def _medians(runs: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, dict[str, float]]:
    return {stage: _spread([value for run in runs for value in run[stage]]) for stage in runs[0]}


def _spread(values: Sequence[float]) -> dict[str, float]:
    tenths = statistics.quantiles(values, n=10)
    facts = {"median": statistics.median(values), "low": tenths[0], "high": tenths[-1]}
    return {name: round(value, 1) for name, value in facts.items()}


def show(results: Sequence[Mapping[str, Any]]) -> None:
    """Print milliseconds of a step."""
    table = Table(title=f"ms of a step, {REQUESTS} requests, median (1st to 9th tenth)", title_justify="left")
    for column in ("", "checkout", "host, wall", "host, cpu", *(f"{stage}" for stage in STAGES), "pages", "sampler"):
        table.add_column(column, justify="left" if column in ("", "checkout") else "right")
    for result in results:
        for name in ("this", "other"):
            if name not in result:
                continue
            wall, cpu = result[name]["wall"], result[name]["cpu"]
            whole = (
                f"{c['median'] / 1e3:.2f} ({c['low'] / 1e3:.2f}-{c['high'] / 1e3:.2f})"
                for c in (wall["host"], cpu["host"])
            )
            parts = (
                f"{cpu[stage]['median'] / 1e3:.2f}" for stage in (*STAGES, "pages, on a clock of its own", "sampler")
            )
            table.add_row(result["label"], name, *whole, *parts)
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
