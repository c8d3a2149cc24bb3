"""The page of the results: docs/gpu.md is what this renders from benchmarks/results/gpu.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.on_gpu.records import Record, Results

HEAD = """# On a GPU

`python benchmarks/gpu.py` checks every kernel against its twin in torch, times it, and times whole decode steps of
networks with random weights of published shapes. It writes `benchmarks/results/gpu.json` after every case and this page
at its end; a run that was cut off goes on where it ended.

What a device can do is measured first: the bandwidth of a copy, and the rate of a bf16 matrix product. The share of a
kernel or step is the time that its work must take at these rates (bytes that must be read and written once, operations
of its matrix products, whichever takes longer) over the time that it took. Caches are flushed before every call that
is timed; contenders take turns, and medians count. Of a network with experts a step must read those that somebody
chose, as many as even routing chooses.
"""

NOTHING = """
There are no results yet: no GPU was at hand when this was written.
"""


def render(results: Results | None) -> str:
    """The page."""
    if results is None or not results.records:
        return HEAD + NOTHING
    about, limits = results.about, results.limits
    parts = [HEAD, "\n## The machine\n"]
    parts.append("\n".join(f"- {name}: {value}" for name, value in sorted(about.items())))
    if limits:
        parts.append(
            f"- copy: {limits['bandwidth'] / 1e9:.0f} GB/s read and written\n"
            f"- bf16 product: {limits['rate'] / 1e12:.0f} TFLOP/s"
        )
    for part, title, table in (
        ("kernels", "Kernels", _kernels),
        ("attention", "Attention", _attention),
        ("steps", "Decode steps", _steps),
    ):
        records = results.of(part)
        if records:
            parts.append(f"\n## {title}\n")
            parts.append(table([record for record in records if "error" not in record]))
            failed = [record for record in records if "error" in record]
            parts += [f"- {record['name']}: failed, {record['error']}" for record in failed]
    return "\n".join(parts) + "\n"


def write(results_path: Path, page: Path) -> None:
    """Render the page from a file of results, if there is one."""
    results = Results(path=results_path, about={})
    if results_path.exists():
        data = json.loads(results_path.read_text())
        results = Results(path=results_path, about=data["about"], limits=data["limits"], records=data["records"])
    page.write_text(render(results), encoding="utf-8")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _kernels(records: Sequence[Record]) -> str:
    rows = [
        (
            record["name"],
            _us(record["seconds"]["ours"]),
            _us(record["seconds"]["twin"]),
            f"{record['seconds']['twin'] / record['seconds']['ours']:.1f}",
            f"{record['share']:.0%}",
            f"{record['off']:.2f}",
        )
        for record in records
    ]
    return _table(("kernel", "us", "twin us", "times faster", "share", "off, of what is allowed"), rows)


def _attention(records: Sequence[Record]) -> str:
    rows = [
        (
            record["name"],
            _us(record["seconds"]["ours"]),
            f"{record['share']:.0%}",
            f"{_us(record['seconds'][record['rival']])} ({record['rival']})",
            f"{record['of_rival']:.0%}",
            f"{record['off']:.2f}",
        )
        for record in records
    ]
    return _table(("task", "us", "share", "best other us", "of the other's speed", "off, of what is allowed"), rows)


def _steps(records: Sequence[Record]) -> str:
    rows = [
        (
            record["name"],
            ", ".join(f"{way} {count}" for way, count in record["ways"].items()),
            f"{record['rows']:.0f}",
            f"{record['seconds']['median'] * 1e3:.2f}",
            f"{record['bytes'] / 1e9:.2f}",
            record["bound"],
            f"{record['share']:.0%}",
        )
        for record in records
    ]
    return _table(("network", "steps", "rows", "ms", "GB", "bound by", "share"), rows)


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:.1f}"
