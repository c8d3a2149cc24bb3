"""The report in docs/serving.md: what was measured and checked, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.serve_load.records import Report

BEGIN, END = "<!-- load: begin, written by python -m benchmarks.serve_load render -->\n", "<!-- load: end -->\n"
_COLUMNS = {
    "clients": "Clients",
    "requests": "Answers",
    "requests_per_s": "Answers/s",
    "tokens_per_s": "Tokens/s",
    "ttft_p50_s": "TTFT p50",
    "ttft_p99_s": "TTFT p99",
    "answer_p50_s": "Answer p50",
    "answer_p99_s": "Answer p99",
    "frontend_us_per_token": "Frontend per token",
}


def with_report(page: str, report: Report) -> str:
    """A page with this report between its two marks."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}{render(report)}{END}{after}"


def write(results: Path, page: Path) -> None:
    """Write the report of a file of results into a page."""
    page.write_text(with_report(page.read_text(encoding="utf-8"), Report.read(results)), encoding="utf-8")


def render(report: Report) -> str:
    """The report as Markdown."""
    return "\n".join([*_head(report), "", *_scenes(report), "", *_others(report), *_checks(report)]) + "\n"


def _head(report: Report) -> Iterator[str]:
    about = dict(report.about)
    commit, when, machine = (about.pop(name) for name in ("commit", "when", "machine"))
    versions = ", ".join(f"{name} {version}" for name, version in about.items())
    yield f"Measured at commit `{commit}` on {when}, {machine}; {versions}."
    if not report.complete:
        yield ""
        yield "**The run did not come to its end.**"


def _scenes(report: Report) -> Iterator[str]:
    rows = {name: numbers for name, numbers in report.numbers.items() if "tokens_per_s" in numbers}
    yield "| | " + " | ".join(_COLUMNS.values()) + " |"
    yield "| --- |" + " ---: |" * len(_COLUMNS)
    for name, numbers in rows.items():
        yield f"| {name} | " + " | ".join(_cell(column, numbers.get(column)) for column in _COLUMNS) + " |"


def _cell(column: str, value: float | None) -> str:
    if value is None:
        return "-"
    if column.endswith("_s") and not column.endswith("per_s"):
        return f"{value * 1000:.1f} ms" if value < 1 else f"{value:.2f} s"
    return f"{value:.0f} µs" if column.endswith("us_per_token") else f"{value:,.10g}"


def _others(report: Report) -> Iterator[str]:
    """What else was counted, a line for each scene."""
    rest: Mapping[str, Mapping[str, Any]] = {
        name: numbers for name, numbers in report.numbers.items() if "tokens_per_s" not in numbers
    }
    for name, numbers in rest.items():
        yield f"- {name}: " + ", ".join(f"{key.replace('_', ' ')} {_plain(value)}" for key, value in numbers.items())
    if rest:
        yield ""


def _checks(report: Report) -> Iterator[str]:
    failed: Sequence[str] = [f"- **{check.what}**: {check.seen}" for check in report.checks if not check.good]
    yield f"{len(report.checks) - len(failed)} of {len(report.checks)} checks hold." + (" Not so:" if failed else "")
    if failed:
        yield ""
        yield from failed


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name}: {each};" for name, each in value.items()).rstrip(";")
    return str(value)
