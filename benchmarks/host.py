"""Host time of a step with 64 running requests: everything but network and sampler, whose time stands beside it.

Run: python -m benchmarks.host [--steps N] [--rounds N] [--against CHECKOUT] [--json FILE]. The network is none, and
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
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import attrs
from benchmarks.bench.machine import commit
from rich.console import Console
from rich.table import Table

from diffulex_core.types import StepPlan

ROOT = Path(__file__).parents[1]
REQUESTS = 64
STAGES = ("schedule", "pack", "update", "record")
"""Of the host's time: planning with page work, laying rows out, applying decisions with page work, and records."""
BESIDE = ("leisure", "critical")
"""Of the same: what is done while a device works, and what is not."""


KINDS: Mapping[str, Mapping[str, Any]] = {
    "filling": {"model_name": "kit_decoder", "decoding_strategy": "kit_blocks"},
    "editing": {"model_name": "llada2", "decoding_strategy": "multi_bd", "sampling_mode": "edit"},
    "merging": {"model_name": "llada2", "decoding_strategy": "dmax"},
    "denoising": {"model_name": "diffusion_gemma", "decoding_strategy": "diffusion_gemma"},
    "sparse": {"model_name": "llada", "decoding_strategy": "llada_canvas", "sparse.enabled": True},
}
"""Families and strategies: what becomes of blocks. Masks are filled; tokens are edited; or merged, too; a canvas is
denoised; or blocks of one are decided over a sparse cache, of which steps that feed only the block are measured."""


@attrs.frozen(kw_only=True)
class Shape:
    """What the requests look like."""

    block_size: int
    prompt: int
    buffer_size: int = 4
    kind: str = "filling"

    @property
    def label(self) -> str:
        count = f"{self.buffer_size} blocks" if self.buffer_size > 1 else "a block"
        kind = "" if self.kind == "filling" else f"{self.kind}, "
        return f"{kind}{count} of {self.block_size}, prompt {self.prompt}"

    @property
    def settings(self) -> dict[str, Any]:
        """Of the engine."""
        settings = {**KINDS[self.kind], "block_size": self.block_size}
        if self.kind == "sparse":
            return {**settings, "sparse.default_block_len": self.block_size, "gen_length": 4 * self.block_size}
        if self.kind == "denoising":
            return settings
        return {
            **settings,
            "buffer_size": self.buffer_size,
            "add_block_threshold": 0.0,
            "semi_complete_threshold": 0.0,
        }

    def answer(self, steps: int) -> int:
        """Tokens of an answer that takes more than so many steps."""
        return self.block_size * (4 if self.kind in ("denoising", "sparse") else self.buffer_size + steps)

    def measured(self, plan: StepPlan) -> bool:
        """Whether a step is one of those that are measured: all requests feed their blocks and nothing else."""
        rows = self.buffer_size * self.block_size
        return len(plan.windows) == REQUESTS and all(len(window.span.tokens) == rows for window in plan.windows)


SHAPES = [
    *(Shape(block_size=block_size, prompt=prompt) for block_size in (32, 4) for prompt in (256, 1024, 4096)),
    *(
        Shape(block_size=block_size, prompt=prompt, kind=kind)
        for kind in ("editing", "merging")
        for block_size in (32, 4)
        for prompt in (256, 4096)
    ),
    Shape(block_size=256, prompt=256, buffer_size=1, kind="denoising"),
    *(Shape(block_size=32, prompt=prompt, buffer_size=1, kind="sparse") for prompt in (256, 1024)),
]


def step_times(shape: Shape, steps: int, *, pages: bool) -> dict[str, dict[str, list[float]]]:
    """Microseconds of each stage in each step, by clock.

    Args:
        pages: a stage "pages", at the price of slower stages around it.
    """
    import torch
    from benchmarks import host_parts

    from diffulex_core.engine import Diffulex
    from diffulex_core.host import Host
    from diffulex_core.sampling_params import SamplingParams
    from diffulex_core.testing.checkpoints import write_checkpoint
    from diffulex_core.testing.reference import plugin as kit
    from diffulex_core.testing.subjects import FamilySubject

    torch.set_num_threads(1)
    host = Host.discover(extra=[kit, host_parts])
    entry = host.models.entry(shape.settings["model_name"])
    assert entry.descriptor.tiny is not None
    tiny = host.load(entry.descriptor.tiny, provenance=entry.provenance)
    family = FamilySubject(host=host, entry=entry, config=_longer(tiny))
    answer = shape.answer(steps)
    params = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=answer)
    times: dict[str, dict[str, list[float]]] = {"wall": {}, "cpu": {}}
    with TemporaryDirectory() as folder:
        write_checkpoint(family, Path(folder))
        engine = Diffulex(
            folder,
            host=host,
            executor=host_parts.EXECUTOR,
            load_format="dummy",
            page_size=max(32, shape.block_size),
            max_model_len=shape.prompt + answer,
            max_num_reqs=REQUESTS,
            max_num_batched_tokens=131072,
            skip_warmup=True,
            strict=True,
            **shape.settings,
        )
    with engine:
        clocks = host_parts.put_on_clocks(engine, pages=pages)
        for request in range(REQUESTS):
            engine.add_request([(7 * at * at + 13 * at + 31 * request) % 90 for at in range(shape.prompt)], params)
        measured = 0
        while measured < steps:
            clocks.read()
            with clocks.on("step"):
                plan = engine.step().plan
            assert plan is not None, "the requests ended too early"
            read = clocks.read()
            if not shape.measured(plan):
                continue
            measured += 1
            for clock, stages in zip(times, map(_stages, read), strict=True):
                for stage, nanoseconds in stages.items():
                    times[clock].setdefault(stage, []).append(nanoseconds / 1000)
    return times


def _longer(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json that sets no limit to sequences."""
    lengths = ("max_position_embeddings", "max_sequence_length")
    return {
        name: _longer(value) if isinstance(value, dict) else 10**6 if name in lengths else value
        for name, value in config.items()
    }


def _stages(read: Mapping[str, int]) -> dict[str, int]:
    """The host's stages, of what the clocks say.

    "host" is their sum, "leisure" what of it is done while a device works, and "critical" the rest.
    """
    apart = read["forward"] + read["sampler"]
    return {
        "schedule": read["schedule"],
        "pack": read["execute"] - apart - read.get("leisure", 0),
        "update": read["update"],
        "record": read["step"] - read["schedule"] - read["execute"] - read["update"] + read.get("leisure", 0),
        "host": read["step"] - apart,
        "leisure": read.get("leisure", 0),
        "critical": read["step"] - apart - read.get("leisure", 0),
        "sampler": read["sampler"],
        **({"pages": read["pages"]} if "pages" in read else {}),
    }


def child(checkout: Path, shape: Shape, steps: int, *, pages: bool) -> dict[str, dict[str, list[float]]]:
    """`step_times` in a fresh process that imports a checkout's core."""
    command = [sys.executable, "-m", "benchmarks.host", "--child", json.dumps([attrs.asdict(shape), steps, pages])]
    sources = [checkout / "src", *sorted(checkout.glob("plugins/*/src"))]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sources)), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True, check=True)
    times: dict[str, dict[str, list[float]]] = json.loads(done.stdout.splitlines()[-1])
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--against", type=Path, help="another checkout, measured in turns with this one")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--only", help="measure the shapes whose label begins so")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        shape, steps, pages = json.loads(arguments.child)
        print(json.dumps(step_times(Shape(**shape), steps, pages=pages)))
        return
    began = datetime.now(UTC).isoformat(timespec="seconds")
    checkouts = {"this": ROOT}
    if arguments.against is not None:
        checkouts["other"] = arguments.against.resolve()
    shapes = [shape for shape in SHAPES if shape.label.startswith(arguments.only or "")]
    results = [measure(shape, checkouts, arguments.steps, arguments.rounds) for shape in shapes]
    show(results)
    if arguments.json is not None:
        facts = {"commit": commit(ROOT), "began": began, "requests": REQUESTS}
        facts |= {"steps": arguments.steps, "rounds": arguments.rounds, "load": os.getloadavg(), "unit": "us"}
        arguments.json.write_text(json.dumps({**facts, "shapes": results}, indent=1) + "\n")


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
    columns = (
        "",
        "checkout",
        "host, wall",
        "host, cpu",
        *(f"{stage}" for stage in (*STAGES, *BESIDE)),
        "pages",
        "sampler",
    )
    for column in columns:
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
                f"{cpu[stage]['median'] / 1e3:.2f}"
                for stage in (*STAGES, *BESIDE, "pages, on a clock of its own", "sampler")
            )
            table.add_row(result["label"], name, *whole, *parts)
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
