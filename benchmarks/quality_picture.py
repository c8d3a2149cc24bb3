"""The accuracy-TPF curves as a picture: a panel for each model and task, a labelled line for each way of decoding."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from benchmarks.quality_curves import Curve

INKS = ("#0b5394", "#b45f06", "#38761d", "#a61c00", "#674ea7", "#1f7a8c", "#7f6000", "#ad1457", "#444444", "#5b7fa6")
"""Dark enough on white paper; apart in lightness as well as in hue. Marks tell lines apart without colour."""
MARKS = "osD^vPX<>h"
ACROSS = 2


def draw(curves: Sequence[Curve], path: Path) -> None:
    """Write a PNG: all measured points, a line through those that nothing beats, and its name where it ends.

    Raises:
        ModuleNotFoundError: matplotlib is not installed; `requirements-dev.txt` has it.
    """
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys((curve.model, curve.task) for curve in curves))
    across = min(ACROSS, max(1, len(panels)))
    down = -(-max(1, len(panels)) // across)
    figure = Figure(figsize=(7.5 * across, 5.2 * down), dpi=150, facecolor="white", layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).flatten().tolist()
    for (model, task), axis in zip(panels, axes, strict=False):
        chosen = [curve for curve in curves if (curve.model, curve.task) == (model, task)]
        heights = apart([100 * curve.edge[-1][1] for curve in chosen])
        furthest = max(tpf for curve in chosen for tpf, _ in curve.points)
        for curve, height, ink, mark in zip(
            chosen, heights, itertools.cycle(INKS), itertools.cycle(MARKS), strict=False
        ):
            tpf, accuracy = zip(*curve.points, strict=True)
            axis.plot(tpf, [100 * each for each in accuracy], mark, color=ink, markersize=4, alpha=0.45)
            tpf, accuracy = zip(*curve.edge, strict=True)
            axis.plot(tpf, [100 * each for each in accuracy], "-" + mark, color=ink, linewidth=1.6, markersize=5.5)
            axis.annotate(
                curve.way,
                (tpf[-1], 100 * accuracy[-1]),
                (1.08 * furthest, height),
                color=ink,
                fontsize=8.5,
                va="center",
                arrowprops={"arrowstyle": "-", "color": ink, "alpha": 0.35, "linewidth": 0.7},
            )
        axis.set(
            title=f"tiny/{model}, {task.replace('_', ' ')} problems",
            xlabel="tokens per forward",
            ylabel="exact answers, %",
            xlim=(0, 1.5 * furthest),
            ylim=(-3, 106),
        )
        axis.grid(color="#e3e6ea", linewidth=0.7)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[len(panels) :]:
        axis.remove()
    # A date in the file would make every run's picture differ.
    figure.savefig(path, metadata={"Software": None})


def apart(heights: Sequence[float], gap: float = 5.5) -> list[float]:
    """Heights of labels, in the order given: at least `gap` apart, as near to what is wanted as fits below 103."""
    placed = [0.0] * len(heights)
    ceiling = 103.0
    for at in sorted(range(len(heights)), key=lambda at: -heights[at]):
        placed[at] = min(heights[at], ceiling)
        ceiling = placed[at] - gap
    # Those at the bottom may have been pushed below the axis; they push back up.
    floor = 0.0
    for at in sorted(range(len(heights)), key=lambda at: placed[at]):
        placed[at] = max(placed[at], floor)
        floor = placed[at] + gap
    return placed
