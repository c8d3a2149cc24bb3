"""Ways of doing the same work, taken in turns, so that a busy machine slows all of them alike."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

Seconds = Mapping[str, list[float]]


def measure(
    contenders: Mapping[str, Callable[[], object]], rounds: int, *, clock: Callable[[], float] = time.perf_counter
) -> Seconds:
    """Seconds of each contender in each round, by `clock`."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in track(range(rounds), description="Measuring"):
        for name, run in contenders.items():
            began = clock()
            run()
            seconds[name].append(clock() - began)
    return seconds


def show(title: str, seconds: Seconds, tokens: int, *, base: str) -> dict[str, float]:
    """Print speeds, and how much faster than `base` each of the others is; returns the medians of these ratios."""
    table = Table(title=f"{title}, {tokens} tokens, {torch.get_num_threads()} threads", title_justify="left")
    for column in ("", "tokens/s, median", "lowest", "highest"):
        table.add_column(column, justify="right" if column else "left")
    for name, times in seconds.items():
        speeds = [tokens / each for each in times]
        table.add_row(name, *(f"{value:.0f}" for value in (statistics.median(speeds), min(speeds), max(speeds))))
    medians = {}
    for name in seconds:
        if name != base:
            ratios = [slow / fast for slow, fast in zip(seconds[base], seconds[name], strict=True)]
            medians[name] = statistics.median(ratios)
            row = (f"{value:.2f}" for value in (medians[name], min(ratios), max(ratios)))
            table.add_row(f"{name} / {base}", *row)
    Console().print(table)
    return medians


def record(path: Path, seconds: Seconds, **facts: Any) -> None:
    """Write the numbers, what they were measured with, and further facts."""
    machine = {"threads": torch.get_num_threads(), "machine": platform.machine(), "torch": torch.__version__}
    path.write_text(json.dumps({**facts, **machine, "seconds": seconds}, indent=1) + "\n")
