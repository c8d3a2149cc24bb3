"""The command: limits of the device, kernels, attention, whole steps, and the page."""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import attrs
import torch
from benchmarks.bench.machine import commit
from benchmarks.on_gpu import attention_cases, compare, layer_cases, page, steps
from benchmarks.on_gpu.records import Record, Results, run_part
from benchmarks.on_gpu.timing import CudaTimer, Limits, Timer, measure_limits

ROOT = Path(__file__).parents[2]
PARTS = ("kernels", "attention", "steps")
SECONDS = {"kernels": 80.0, "attention": 130.0, "steps": 210.0}
"""Of each part, after which no case is begun; together with the limits and the last cases below eight minutes."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 1 where a case failed, 2 where there is no device."""
    parser = argparse.ArgumentParser(prog="gpu.py", description=__doc__)
    parser.add_argument("--only", choices=PARTS, action="append", help="a part; may be given several times")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "gpu.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "gpu.md")
    parser.add_argument("--seconds", type=float, help="begin no case of a part after so many")
    parser.add_argument("--rounds", type=int, default=15, help="of each kernel")
    parser.add_argument("--again", action="store_true", help="begin anew in place of going on")
    parser.add_argument("--render", action="store_true", help="only write the page")
    given = parser.parse_args(arguments)
    if given.render:
        page.write(given.results, given.page)
        return 0
    if not torch.cuda.is_available():
        print(
            "There is no CUDA device that torch can use, and this benchmark measures nothing else. Run it on a machine "
            "with one, or `python -m benchmarks.bench run` for the CPU.",
            file=sys.stderr,
        )
        return 2
    device = torch.device("cuda", torch.cuda.current_device())
    results = Results.open(given.results, about(device), again=given.again)
    left = run(
        results,
        CudaTimer(device),
        parts=given.only or PARTS,
        seconds={part: given.seconds or SECONDS[part] for part in PARTS},
        rounds=given.rounds,
    )
    page.write(given.results, given.page)
    if left:
        print(f"Not begun, {len(left)} cases; the same command goes on with them: {', '.join(left)}")
    return 1 if any("error" in record for record in results.records.values()) else 0


def run(
    results: Results,
    timer: Timer,
    *,
    parts: Sequence[str],
    seconds: dict[str, float],
    rounds: int,
    now: Callable[[], float] = time.perf_counter,
    say: Callable[[str], None] = print,
) -> list[str]:
    """Measure what has no result yet; returns what was not begun."""
    if not results.limits:
        results.limits = attrs.asdict(measure_limits(timer))
        results.write()
    limits = Limits(**results.limits)
    say(f"copy {limits.bandwidth / 1e9:.0f} GB/s, bf16 product {limits.rate / 1e12:.0f} TFLOP/s")
    left: list[str] = []
    with steps.Engines(device=str(timer.device)) as engines:
        for part in (part for part in PARTS if part in parts):
            if part == "steps":
                cases = steps.cases(steps.models(), limits, engines=engines, now=now)
            else:
                cases = kernel_cases(part, timer, limits, rounds=rounds)
            left += run_part(results, part, cases, seconds=seconds[part], now=now, say=say)
    return left


def kernel_cases(part: str, timer: Timer, limits: Limits, *, rounds: int) -> dict[str, Callable[[], Record]]:
    """The cases of the parts that time kernels, by name."""
    module = layer_cases if part == "kernels" else attention_cases
    pairs = module.cases(timer.device, torch.bfloat16)

    def measured(make: Callable[[], compare.Pair]) -> Record:
        with torch.no_grad():
            return compare.measure(timer, make(), limits, rounds=rounds)

    return {name: partial(measured, make) for name, make in pairs.items()}


def about(device: torch.device) -> dict[str, Any]:
    """The machine and the software."""
    properties = torch.cuda.get_device_properties(device)
    found = {
        "commit": commit(ROOT),
        "device": properties.name,
        "memory GiB": round(properties.total_memory / 2**30, 1),
        "processors": properties.multi_processor_count,
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
    }
    for name in ("torch", "triton", "transformers", "flash-attn"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
