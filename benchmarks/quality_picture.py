"""The accuracy-TPF curves as a picture: a panel for each model and task, a labelled line for each way of decoding."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.quality_curves import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INKS = ("#0b5394", "#b45f06", "#38761d", "#a61c00", "#674ea7", "#1f7a8c", "#7f6000", "#ad1457", "#444444", "#5b7fa6")
"""Dark enough on white paper, and apart in lightness as well as in hue."""
LOOKS = tuple((INKS[at % len(INKS)], "osD^vPX<>"[at % 9]) for at in range(90))
"""Inks and marks, so that lines are told apart without colour too; each pair differs from all others."""
ACROSS, TOP = 2, 101.5


def draw(curves: Sequence[Curve], path: Path) -> None:
    """Write a PNG: all measured points, stairs along those that nothing beats, and their name.

    Raises:
        ModuleNotFoundError: matplotlib is not installed; `requirements-dev.txt` has it.
    """
    from matplotlib.figure import Figure

    looks = dict(zip(dict.fromkeys(curve.way for curve in curves), itertools.cycle(LOOKS), strict=False))
    panels = list(dict.fromkeys((curve.model, curve.task) for curve in curves))
    across = min(ACROSS, max(1, len(panels)))
    down = -(-max(1, len(panels)) // across)
    figure = Figure(figsize=(8.5 * across, 5.2 * down), dpi=150, facecolor="white", layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).flatten().tolist()
    for (model, task), axis in zip(panels, axes, strict=False):
        _panel(axis, [curve for curve in curves if (curve.model, curve.task) == (model, task)], looks)
        axis.set_title(f"tiny/{model}, {task.replace('_', ' ')} problems", loc="left")
    for axis in axes[len(panels) :]:
        axis.remove()
    # A date in the file would make every run's picture differ.
    figure.savefig(path, metadata={"Software": None})


def _panel(axis: Axes, curves: Sequence[Curve], looks: Mapping[str, tuple[str, str]]) -> None:
    furthest = max(tpf for curve in curves for tpf, _ in curve.points)
    bottom = max(-3.0, 100 * min(accuracy for curve in curves for _, accuracy in curve.edge) - 8)
    axis.set(xlabel="tokens per forward", ylabel="exact answers, %", xlim=(0, 1.04 * furthest), ylim=(bottom, TOP))
    axis.grid(color="#e3e6ea", linewidth=0.7)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    # Of those that end at one height the furthest is named first, so that few of the thin lines cross.
    ordered = sorted(curves, key=lambda curve: (-curve.edge[-1][1], -curve.edge[-1][0]))
    heights = apart([(100 * curve.edge[-1][1] - bottom) / (TOP - bottom) for curve in ordered])
    for curve, height in zip(ordered, heights, strict=True):
        ink, mark = looks[curve.way]
        tpf, accuracy = zip(*curve.points, strict=True)
        axis.plot(tpf, [100 * each for each in accuracy], mark, color=ink, markersize=4, alpha=0.45)
        tpf, accuracy = zip(*curve.edge, strict=True)
        axis.plot(tpf, [100 * each for each in accuracy], "-" + mark, color=ink, linewidth=1.6, drawstyle="steps-pre")
        axis.annotate(
            curve.way,
            (tpf[-1], 100 * accuracy[-1]),
            xytext=(1.03, height),
            textcoords="axes fraction",
            color=ink,
            fontsize=8.5,
            va="center",
            arrowprops={"arrowstyle": "-", "color": ink, "alpha": 0.35, "linewidth": 0.7, "relpos": (0, 0.5)},
        )


def apart(heights: Sequence[float], gap: float = 0.052) -> list[float]:
    """Heights of labels, shares of an axis, in the order given: `gap` apart and as near to what is wanted as fits."""
    placed = [0.0] * len(heights)
    ceiling = 0.98
    for at in sorted(range(len(heights)), key=lambda at: -heights[at]):
        placed[at] = min(heights[at], ceiling)
        ceiling = placed[at] - gap
    # Those at the bottom may have been pushed below the axis; they push back up.
    floor = 0.0
    for at in sorted(range(len(heights)), key=lambda at: placed[at]):
        placed[at] = max(placed[at], floor)
        floor = placed[at] + gap
    return placed
