"""Results of `benchmarks.quality` as CSV, and as Markdown for the documentation."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.quality_curves import (
    ALLOWED_LOSS,
    GOOD,
    LEAST_BLOCKS,
    SETTLED_BLOCK,
    WANTED_RATIO,
    Comparison,
    Curve,
)
from benchmarks.quality_results import Edits, Result

from diffulex_tiny.evaluate import wilson

REASONS = ("stop_eos", "length_tokens", "length_context", "nfe_limit", "repetition", "error")
"""Why answers end here; each has a column."""


def row(result: Result) -> dict[str, Any]:
    """The columns of one point; empty where something was not measured or does not exist."""
    low, high = wilson(result.exact, result.problems)
    edits, speed = result.edits, result.speed
    return {
        "model": result.model,
        "task": result.task,
        "way": result.way,
        "strategy": result.strategy,
        "knob": result.knob,
        "value": result.value,
        "problems": result.problems,
        "exact": result.exact,
        "accuracy": round(result.accuracy, 4),
        "low_95": round(low, 4),
        "high_95": round(high, 4),
        "tpf": round(result.tpf, 4),
        "tpf_total": round(result.tpf_total, 4),
        "tpf_stores": "" if result.tpf_stores is None else round(result.tpf_stores, 4),
        "forwards": round(result.forwards, 3),
        "rows": round(result.rows, 2),
        "head_rows": round(result.head_rows, 2),
        "rows_per_forward": round(result.rows_per_forward, 2),
        "edits": "" if edits is None else edits.made,
        "edits_helped": "" if edits is None else edits.helped,
        "edits_hurt": "" if edits is None else edits.hurt,
        **{reason: round(result.reasons.get(reason, 0.0), 4) for reason in REASONS},
        "other_reasons": round(sum(share for name, share in result.reasons.items() if name not in REASONS), 4),
        "tokens_per_second": "" if speed is None else round(speed.median, 1),
        "slowest_round": "" if speed is None else round(speed.lowest, 1),
        "fastest_round": "" if speed is None else round(speed.highest, 1),
    }


def as_csv(results: Sequence[Result]) -> str:
    """A line for each point, with a header."""
    text = io.StringIO()
    rows = [row(each) for each in results]
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_markdown(
    results: Sequence[Result], curves: Sequence[Curve], comparisons: Sequence[Comparison], notes: Iterable[str]
) -> str:
    """Curves, the comparison of one block with several, and all points of each model and task."""
    parts = [f"* {note}" for note in notes]
    parts += ["", "## Curves", "", *_table(_CURVE_COLUMNS, map(_curve_cells, curves))]
    parts += ["", "## Several blocks against one", "", _told(comparisons)]
    if comparisons:
        parts += ["", *_table(_COMPARISON_COLUMNS, map(_comparison_cells, comparisons))]
    for model, task in dict.fromkeys((each.model, each.task) for each in results):
        chosen = [each for each in results if (each.model, each.task) == (model, task)]
        parts += ["", f"## tiny/{model}, {task}", "", *_table(_COLUMNS, map(_cells, chosen))]
    return "\n".join(parts).lstrip("\n") + "\n"


_COLUMNS = (
    "Way", "knob", "exact", "95 % interval", "TPF", "with prefill", "with stores", "forwards", "rows", "head rows",
    "edits, helped, hurt", "ended by", "tokens/s of one thread",
)  # fmt: skip
_CURVE_COLUMNS = (
    "Model", "task", "way", "points", "best exact", "highest TPF within 2 points of it",
    f"highest TPF with {100 * GOOD:g} %", "area",
)  # fmt: skip
_COMPARISON_COLUMNS = (
    "Model", "task", "accept", "buffer", "other settings", "TPF of one", "of several", "ratio", "to one with stores",
    "points lost", "to the fastest one that is as exact", "in tokens/s", "rows in a forward, one and several", "met",
)  # fmt: skip


def _cells(result: Result) -> Sequence[str]:
    low, high = wilson(result.exact, result.problems)
    stores, speed = result.tpf_stores, result.speed
    return (
        result.way,
        f"{result.knob} {result.value:g}",
        f"{result.exact} of {result.problems}, {100 * result.accuracy:.1f} %",
        f"{100 * low:.1f} to {100 * high:.1f} %",
        f"{result.tpf:.2f}",
        f"{result.tpf_total:.2f}",
        "" if stores is None else f"{stores:.2f}",
        f"{result.forwards:.2f}",
        f"{result.rows:.0f}",
        f"{result.head_rows:.0f}",
        "" if result.edits is None else _told_edits(result.edits),
        ", ".join(f"{name} {100 * share:.1f} %" for name, share in result.reasons.items()),
        "" if speed is None else f"{speed.median:.0f}, {speed.lowest:.0f} to {speed.highest:.0f}",
    )


def _told_edits(edits: Edits) -> str:
    return f"{edits.made}, {edits.helped}, {edits.hurt}"


def _curve_cells(curve: Curve) -> Sequence[str]:
    best = max(accuracy for _, accuracy in curve.points)
    return (
        curve.model,
        curve.task,
        curve.way,
        str(len(curve.points)),
        f"{100 * best:.1f} %",
        f"{curve.fastest:.2f}",
        "" if curve.good is None else f"{curve.good:.2f}",
        f"{curve.area:.2f}",
    )


def _comparison_cells(pair: Comparison) -> Sequence[str]:
    one, several = pair.one, pair.several
    usual = {"sampling_mode", "semi_complete_threshold", "add_block_threshold"}
    others = ", ".join(f"{name} {value}" for name, value in several.settings.items() if name in usual)
    return (
        several.model,
        several.task,
        f"{several.settings['accept_threshold']:g}",
        str(several.settings["buffer_size"]),
        others,
        f"{one.tpf:.2f}",
        f"{several.tpf:.2f}",
        f"{pair.ratio:.2f}",
        f"{pair.ratio_stores:.2f}",
        f"{100 * pair.lost:.1f}",
        "" if pair.ratio_as_exact is None else f"{pair.ratio_as_exact:.2f}",
        "" if pair.speedup is None else f"{pair.speedup:.2f}",
        f"{one.rows_per_forward:.1f}, {several.rows_per_forward:.1f}",
        "yes" if pair.met else "no",
    )


def _told(comparisons: Sequence[Comparison]) -> str:
    asked = (
        f"`multi_bd` at block size {SETTLED_BLOCK} on answers of at least {LEAST_BLOCKS} blocks; wanted: at least "
        f"{WANTED_RATIO:g} times the TPF of one block, at most {100 * ALLOWED_LOSS:g} points of accuracy lost."
    )
    if not comparisons:
        return f"{asked} Nothing that was run has both: no model here was asked for such answers."
    met = sum(pair.met for pair in comparisons)
    return f"{asked} Met by {met} of {len(comparisons)} settings."


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [_line(columns), _line(["---"] * len(columns)), *map(_line, rows)]


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
