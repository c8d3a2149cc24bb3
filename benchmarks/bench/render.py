"""The page of the results: what was measured, and nothing else."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.bench.cells import SECTIONS
from benchmarks.bench.networks import NETWORKS
from benchmarks.bench.results import Contended, Outcome, Report
from benchmarks.bench.steps import anatomy_section, host_section
from benchmarks.bench.tables import spread_text, table
from benchmarks.bench.targets import verdicts
from benchmarks.bench.turns import Spread


def page(
    report: Report,
    *,
    results: str,
    picture: str | None,
    host: Mapping[str, Any] | None = None,
    anatomy: Mapping[str, Any] | None = None,
) -> str:
    """Markdown of a report.

    Args:
        results: name of the results' file in `benchmarks/results`.
        picture: file name of the picture beside the page; None without one.
        host: what `benchmarks/host.py` wrote; None without.
        anatomy: what `python -m benchmarks.bench anatomy` wrote; None without.
    """
    parts = [_head(report, results), *_targets(report, host)]
    if picture is not None:
        parts.append(f"![Tokens per second of each cell]({picture})")
    if report.trained:
        parts.append(_trained(report))
    for section, title in SECTIONS.items():
        outcomes = [outcome for outcome in report.outcomes if outcome.section == section]
        if outcomes:
            parts.append(f"## {title}\n\n{_cells(outcomes)}")
    if report.failures:
        parts.append(
            "## Not measured\n\n" + "\n".join(f"* `{name}`: {_line(why)}" for name, why in report.failures.items())
        )
    if report.gemma:
        parts.append(_gemma(report))
    if report.limits:
        parts.append(_limits(report))
    if report.imports:
        parts.append(_imports(report))
    if anatomy is not None:
        parts.append(anatomy_section(anatomy))
    if host is not None:
        parts.append(host_section(host))
    return "\n\n".join([*parts, _REPRODUCE]) + "\n"


FEW_ROUNDS = 3
"""Of which a cell is marked that has fewer: its spread says little."""

_REPRODUCE = """## Measuring it again

`nox -s bench`, or one by one: `python -m benchmarks.bench run`, `python -m benchmarks.bench anatomy`,
`python -m benchmarks.host --json benchmarks/results/host.json`, and `python -m benchmarks.bench render`, which writes
this page. The first two refuse a machine on which other processes run; [benchmarks.md](benchmarks.md) says what else
there is."""


def _head(report: Report, results: str) -> str:
    machine = report.machine
    idle = (
        "Nothing else ran on the machine."
        if report.citable
        else "**Other processes ran on the machine: times here are not citable, and ratios only roughly so.**"
    )
    return f"""# Performance on the CPU

Written by `python -m benchmarks.bench render` from
[`benchmarks/results/{results}`](../benchmarks/results/{results}): commit `{report.commit}`, {report.began}.

{machine["cpu"]} ({machine["family"]}; {", ".join(machine["instructions"])}), {machine["threads"]} threads of
{machine["cores"]} cores, {machine["memory_gib"]} GiB, {machine["system"]}; Python {machine["python"]}, torch
{machine["torch"]}, transformers {machine["transformers"]}. {idle}

Contenders run in processes of their own, pinned to the same cores, on the same weights and prompts, and take turns.
Times are medians of the rounds, with the lowest and highest in brackets; *faster* is the median of the rounds' ratios
of tokens/s to the first line of a cell, by the clock and by CPU time. *Of the limit* is the share of the time that the
machine would need at least, at its best measured GEMM rate or reading each weight once a step. Random weights;
{_networks(report)}."""


def _networks(report: Report) -> str:
    used = dict.fromkeys(outcome.network for outcome in report.outcomes)
    return "; ".join(
        f"*{name}* is {each.layers} layers of {each.hidden}, vocabulary {each.vocab:,}, {each.parameters / 1e6:.1f}M "
        f"parameters"
        for name in used
        for each in [NETWORKS[name]]
    )


def _cells(outcomes: Sequence[Outcome]) -> str:
    columns = (
        "Network", "dtype", "prompt + output", "batch", "contender", "tokens/s", "faster", "by CPU time", "ms per step",
        "steps", "rows per token", "head rows per token", "first block, ms", "host, ms per step", "peak RSS, MiB",
        "of the limit",
    )  # fmt: skip
    rows = [_row(outcome, contended) for outcome in outcomes for contended in outcome.contenders]
    notes = [*_notes(outcomes)]
    return table(columns, rows) + ("\n\n" + "\n".join(notes) if notes else "")


def _row(outcome: Outcome, each: Contended) -> tuple[str, ...]:
    share = each.steps / each.planned_steps
    speeds = Spread.of([1 / seconds for seconds in each.per_token])
    first = each is outcome.contenders[0]
    faster, by_cpu = outcome.faster(each), outcome.faster(each, by_cpu=True)
    return (
        outcome.network,
        each.dtype,
        f"{each.work.prompt} + {each.work.output}",
        str(each.work.batch),
        each.name,
        spread_text(speeds, 1),
        "" if first else spread_text(faster, 2),
        "" if first or math.isnan(by_cpu.median) else f"{by_cpu.median:.2f}",
        f"{1e3 * statistics.median(each.wall) / each.steps:.2f}",
        f"{each.steps} of {each.planned_steps}" if each.sampled else str(each.steps),
        f"{each.rows / share / each.tokens:.1f}",
        f"{each.head_rows / share / each.tokens:.1f}",
        f"{1e3 * statistics.median(each.first_block):.1f}" if each.first_block else "",
        f"{1e3 * statistics.median(each.outside) / each.steps:.2f}" if each.outside else "",
        "" if each.peak_rss is None else f"{each.peak_rss / 2**20:.0f}",
        "" if each.fraction is None else f"{each.fraction:.0%}",
    )


def _targets(report: Report, host: Mapping[str, Any] | None) -> Iterator[str]:
    """What the project aims at, if any of it was measured."""
    rows = [
        (
            verdict.what,
            f"`{verdict.where}`",
            f"{'>=' if verdict.at_least else '<='} {verdict.wanted:g}{verdict.unit}",
            f"{spread_text(verdict.found, 2)}{verdict.unit}",
            "reached" if verdict.reached else "**missed**",
        )
        for verdict in verdicts(report, host)
    ]
    if rows:
        yield f"## Targets\n\n{table(('what', 'where', 'target', 'found', ''), rows)}"


def _notes(outcomes: Sequence[Outcome]) -> Iterator[str]:
    if any(each.sampled for outcome in outcomes for each in outcome.contenders):
        yield (
            "Where fewer steps were run than an answer takes, the speed is that of all of them: every step of a whole "
            "canvas does the same work."
        )
    equal = [outcome for outcome in outcomes if outcome.agreement == 1.0]
    if equal:
        yield f"Tokens are equal, one by one, in {len(equal)} of these {len(outcomes)} cells."
    for outcome in outcomes:
        if outcome.agreement is not None and outcome.agreement < 1:
            yield f"In `{outcome.name}` {outcome.agreement:.1%} of the tokens are equal: rounding differs."
    for outcome in outcomes:
        rounds = len(outcome.contenders[0].wall)
        if rounds < FEW_ROUNDS:
            counted = "one round" if rounds == 1 else f"{rounds} rounds"
            yield f"`{outcome.name}` has {counted}: no further one began in the time of a cell."
    for outcome in outcomes:
        if not outcome.citable:
            yield f"`{outcome.name}`: others took {outcome.others:.0%} of the machine; not citable."


def _trained(report: Report) -> str:
    columns = (
        "model",
        "way",
        "right answers",
        "tokens/s",
        "faster",
        "forwards",
        "rows per token",
        "head rows per token",
    )
    rows = [
        (
            f"`{each['model']}`",
            each["name"],
            f"{each['right']} of {each['problems']}",
            spread_text(Spread(**each["tokens_per_second"]), 0),
            spread_text(Spread(**each["faster"]), 2),
            str(each["forwards"]),
            f"{each['rows'] / each['tokens']:.1f}",
            f"{each['head_rows'] / each['tokens']:.1f}",
        )
        for each in report.trained
    ]
    commits = ", ".join(f"`{each}`" for each in sorted({each["commit"] for each in report.trained}))
    note = "" if all(each["citable"] for each in report.trained) else "\n\nMeasured on a busy machine; not citable."
    return (
        "## Trained networks, the same unseen problems\n\nTokens are those of the answers, without what stands behind "
        f"their end; *faster* compares with the first way of the same model. At commit {commits}.\n\n"
        f"{table(columns, rows)}{note}"
    )


def _gemma(report: Report) -> str:
    columns = ("way", "prompt + output", "steps", "ms per step", "faster", "rows", "head rows")
    rows = [
        (
            each["name"],
            f"{each['prompt']} + {each['output']}",
            str(each["steps"]),
            spread_text(Spread(**each["ms_per_step"]), 1),
            spread_text(Spread(**each["faster"]), 2),
            str(each["rows"]),
            str(each["head_rows"]),
        )
        for each in report.gemma
    ]
    note = "" if all(each["citable"] for each in report.gemma) else "\n\nMeasured on a busy machine; not citable."
    return (
        "## DiffusionGemma\n\nA random network of six layers of 512 with eight experts, vocabulary 16,384, float32, "
        "one canvas of 256. Random\nnumbers differ, so tokens do, too; steps and lengths are equal.\n\n"
        f"{table(columns, rows)}{note}"
    )


def _limits(report: Report) -> str:
    rates = report.limits["gemm"]
    columns = ("rows x inputs x outputs", *(f"{dtype}, GFLOP/s" for dtype in rates))
    shapes = dict.fromkeys(shape for found in rates.values() for shape in found if shape != "best")
    rows = [(shape, *(f"{rates[dtype].get(shape, 0) / 1e9:.0f}" for dtype in rates)) for shape in shapes]
    read, copy = report.limits["read"] / 1e9, report.limits["copy"] / 1e9
    return (
        f"## The machine's limits\n\nMemory is read at {read:.1f} GB/s and copied at {copy:.1f} GB/s (read "
        "and written). *plain* is `torch.nn.functional.linear`, *blocked* the layout that our engine gives its weights."
        "\n\n"
        f"{table(columns, rows)}"
    )


def _imports(report: Report) -> str:
    rows = [
        (
            f"`{name}`",
            spread_text(Spread(median=each["median"], low=each["low"], high=each["high"]), 3),
            "yes" if each["torch"] else "no",
        )
        for name, each in report.imports.items()
    ]
    return f"## Start\n\n{table(('fresh interpreter', 'seconds', 'imports torch'), rows)}"


def _line(text: str) -> str:
    """The first line of a message, and its last one if there are more."""
    lines = text.strip().splitlines()
    return lines[0] if len(lines) == 1 else f"{lines[0]} ... {lines[-1]}"
