"""The picture of the results: how many times faster than the first contender of its cell each of the others is."""

from __future__ import annotations

from pathlib import Path

from benchmarks.bench.cells import SECTIONS
from benchmarks.bench.results import Report


def draw(report: Report, target: Path) -> bool:
    """Draw a bar for each contender but the first of each cell; False where there is none to draw."""
    bars = [
        (f"{outcome.name}: {each.name}", outcome.faster(each), outcome.section)
        for section in SECTIONS
        for outcome in report.outcomes
        if outcome.section == section
        for each in outcome.contenders[1:]
    ]
    if not bars:
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 1.2 + 0.32 * len(bars)), layout="constrained")
    axes = figure.subplots()
    colours = {section: f"C{index}" for index, section in enumerate(SECTIONS)}
    places = range(len(bars))
    middles = [spread.median for _, spread, _ in bars]
    reach = [
        [spread.median - spread.low for _, spread, _ in bars],
        [spread.high - spread.median for _, spread, _ in bars],
    ]
    axes.barh(places, middles, xerr=reach, color=[colours[section] for _, _, section in bars], height=0.7)
    axes.set_yticks(places, [label for label, _, _ in bars], fontsize=7)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("times faster than the first contender of the cell; lines from lowest to highest round")
    if not report.citable:
        axes.set_title("measured on a busy machine", fontsize=9)
    figure.savefig(target, dpi=110)
    return True
