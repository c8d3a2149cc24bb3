"""Throughput of 16 problems in one batch against the same problems one at a time, interleaved, medians with spread.

Run: python benchmarks/throughput.py [--rounds N] [--json FILE]. Same weights, same prompts, same tokens out (checked).
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from diffulex_core.engine import Diffulex
from diffulex_core.sampling_params import SamplingParams
from diffulex_tiny import problems

COUNT = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    arguments = parser.parse_args()
    prompts = [problem.prompt for problem in problems.problems(2, "eval", COUNT)]
    greedy = SamplingParams(temperature=0.0, max_tokens=32)
    with Diffulex("tiny/llada", enable_prefix_caching=False) as engine:

        def batched() -> list[tuple[int, ...]]:
            return [output.token_ids for output in engine.generate(prompts, greedy)]

        def one_by_one() -> list[tuple[int, ...]]:
            return [engine.generate(prompt, greedy)[0].token_ids for prompt in prompts]

        contenders: dict[str, Callable[[], list[tuple[int, ...]]]] = {"one batch": batched, "one at a time": one_by_one}
        answers = {name: run() for name, run in contenders.items()}
        assert answers["one batch"] == answers["one at a time"], "the batch changed an answer"
        tokens = sum(map(len, answers["one batch"]))
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in track(range(arguments.rounds), description="Measuring"):
            for name, run in contenders.items():
                began = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - began)
    ratios = [slow / fast for fast, slow in zip(seconds["one batch"], seconds["one at a time"], strict=True)]
    table = Table(title=f"{COUNT} problems, {tokens} tokens, {torch.get_num_threads()} threads", title_justify="left")
    for column in ("", "tokens/s, median", "lowest", "highest"):
        table.add_column(column, justify="right" if column else "left")
    for name, times in seconds.items():
        speeds = sorted(tokens / each for each in times)
        table.add_row(name, *(f"{value:.0f}" for value in (statistics.median(speeds), speeds[0], speeds[-1])))
    table.add_row("ratio", *(f"{value:.2f}" for value in (statistics.median(ratios), min(ratios), max(ratios))))
    Console().print(table)
    if arguments.json is not None:
        record = {
            "problems": COUNT,
            "tokens": tokens,
            "threads": torch.get_num_threads(),
            "machine": platform.machine(),
            "torch": torch.__version__,
            "seconds": seconds,
            "ratio_median": statistics.median(ratios),
        }
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
