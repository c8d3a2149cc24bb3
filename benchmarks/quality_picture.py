"""The accuracy-TPF curves as pictures: every way of decoding on every task, and what each family of them buys."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from benchmarks.quality_curves import Curve, Point, edge

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.float64]
Filling = Literal["full", "none", "left", "top", "bottom"]


class Dress(NamedTuple):
    """What the ways of one family share."""

    ink: str
    mark: str


class Touch(NamedTuple):
    """What tells the ways of one family apart; a `tone` above 0 mixes its ink with white, one below 0 with black."""

    tone: float
    filling: Filling
    dashes: tuple[float, ...] = ()


class Look(NamedTuple):
    """How one way is drawn. Where there is no colour, mark, filling and dashes tell as much as the ink."""

    ink: str
    mark: str
    filling: Filling
    dashes: tuple[float, ...]


FAMILIES: Mapping[str, Dress] = {
    "multi_bd": Dress("#0072b2", "o"),
    "d2f": Dress("#ad6c00", "D"),
    "edit": Dress("#006b4a", "s"),
    "dmax": Dress("#c8500a", "^"),
    "llada_canvas": Dress("#b0508a", "v"),
    "dream_canvas": Dress("#555555", "P"),
    "diffusion_gemma": Dress("#2b7f9e", "X"),
}
"""By a way's name up to its first comma. The inks are Okabe and Ito's, darkened for lines on white paper."""
TOUCHES: Mapping[str, Touch] = {
    "": Touch(0, "full"),
    "one block": Touch(0.3, "none", (1, 1)),
    "longer blocks": Touch(-0.3, "top", (5, 1.2)),
    "one block of 32": Touch(0.15, "left", (3, 1, 1, 1)),
    "two blocks of 32": Touch(-0.6, "bottom", (6, 1, 1, 1, 1, 1)),
    "guided": Touch(0.3, "none", (1, 1)),
    "threshold": Touch(-0.4, "left", (5, 1.2)),
    "sparse cache": Touch(0.15, "top", (3, 1, 1, 1)),
}
"""By the rest of the name; blocks and canvases may share a touch, since no family has both."""
STRANGER, UNKNOWN = Dress("#777777", "p"), Touch(-0.15, "none", (2, 2))
"""For names that are in neither table."""

TICKS = (100, 99.5, 99, 98, 95, 90, 80, 50, 0)
LEAST_ERROR = 0.5
"""Percent of wrong answers from which on the scale is nearly logarithmic; smaller differences are chance."""
SIDES = ((1, 0), (1, 1), (1, -1), (0, 1), (0, -1), (-1, 1), (-1, -1), (-1, 0))
"""Where a name may stand beside its point, the best first: right of it, above and right, and so on."""


def look(way: str) -> Look:
    """The same in all panels and pictures: a hue and a mark for the family; lightness, filling and dashes within it."""
    family, _, rest = way.partition(", ")
    dress, touch = FAMILIES.get(family, STRANGER), TOUCHES.get(rest, UNKNOWN)
    return Look(_toned(dress.ink, touch.tone), dress.mark, touch.filling, touch.dashes)


def best_of_families(curves: Iterable[Curve]) -> dict[str, tuple[Point, ...]]:
    """For each family the edge of all that its ways reached."""
    points: dict[str, list[Point]] = {}
    for curve in curves:
        points.setdefault(curve.way.partition(",")[0], []).extend(curve.points)
    return {family: edge(reached) for family, reached in points.items()}


def draw(curves: Sequence[Curve], path: Path) -> None:
    """Write a PNG: for each model and task all measured points, and for each way the stairs that none of them beats.

    Raises:
        ModuleNotFoundError: matplotlib is not installed; `requirements-dev.txt` has it.
    """
    _save(whole(curves), path)


def draw_overview(curves: Sequence[Curve], path: Path) -> None:
    """Write a PNG for a first look: for each model its long problems, and a line for the best of each family.

    Raises:
        ModuleNotFoundError: matplotlib is not installed; `requirements-dev.txt` has it.
    """
    _save(overview(curves), path)


def whole(curves: Sequence[Curve]) -> Figure:
    """What `draw` writes."""
    from matplotlib.figure import Figure

    panels = _panels(curves)
    # As high as its legend is long.
    heights = [max(2.5, 1.2 + 0.2 * len(ways)) for ways in panels.values()]
    figure = Figure(figsize=(10, sum(heights)), dpi=150, facecolor="white", layout="constrained")
    axes = figure.subplots(len(panels), squeeze=False, height_ratios=heights).flatten().tolist()
    for (name, ways), axis in zip(panels.items(), axes, strict=True):
        _scale(axis, [point for curve in ways for point in curve.points])
        axis.set_title(_title(*name), loc="left", fontweight="bold")
        axis.set(xlabel="tokens per forward", ylabel="exact answers, %")
        for curve in sorted(ways, key=lambda curve: -curve.area):
            axis.plot(*_percents(curve.points), **{**_line(curve.way, 3), "linestyle": "", "alpha": 0.4})
            _stairs(axis, curve.edge, linewidth=1.4, label=_label(curve), **_line(curve.way, 6))
        legend = {"loc": "upper left", "bbox_to_anchor": (1, 1.06), "title": "area under the stairs, way"}
        axis.legend(**legend, frameon=False, fontsize=9, title_fontsize=9, alignment="left", handlelength=3.6)
    return figure


def overview(curves: Sequence[Curve]) -> Figure:
    """What `draw_overview` writes."""
    from matplotlib.figure import Figure

    panels = _panels(curves)
    chosen = {model: (model, task) for model, task in panels if task == "long" or (model, "long") not in panels}
    across = min(2, len(chosen))
    down = -(-len(chosen) // across)
    figure = Figure(figsize=(4.2 * across, 3.2 * down), dpi=200, facecolor="white", layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).flatten().tolist()
    named = []
    for name, axis in zip(chosen.values(), axes, strict=False):
        edges = best_of_families(panels[name])
        _scale(axis, [point for points in edges.values() for point in points], room=1.12)
        axis.set_title(_title(*name), loc="left", fontweight="bold", fontsize=12)
        for family, points in edges.items():
            rim = {"markeredgecolor": "white", "markeredgewidth": 0.6}
            _stairs(axis, points, linewidth=2.2, label=family, **_line(family, 7.5), **rim)
        named.append((axis, edges))
    for axis in axes[len(chosen) :]:
        axis.remove()
    figure.supxlabel("tokens per forward (further right: fewer forwards)", fontsize=12)
    figure.supylabel("exact answers, %", fontsize=12)
    # Names are placed by pixels, so everything else must be where it stays.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axis, edges in named:
        _name(axis, edges)
    return figure


def _panels(curves: Iterable[Curve]) -> dict[tuple[str, str], list[Curve]]:
    panels: dict[tuple[str, str], list[Curve]] = {}
    for curve in curves:
        panels.setdefault((curve.model, curve.task), []).append(curve)
    return panels


def _title(model: str, task: str) -> str:
    return f"tiny/{model}, {task.replace('_', '-')} problems"


def _label(curve: Curve) -> str:
    return f"{curve.area:.1f}".rjust(4, "\N{FIGURE SPACE}") + "  " + curve.way


def _toned(ink: str, tone: float) -> str:
    from matplotlib.colors import to_hex, to_rgb

    red, green, blue = (part + abs(tone) * ((tone > 0) - part) for part in to_rgb(ink))
    return to_hex((red, green, blue))


def _line(way: str, size: float) -> dict[str, Any]:
    """What matplotlib calls the parts of a look; `size` of a mark in points."""
    ink, mark, filling, dashes = look(way)
    line = {"color": ink, "linestyle": (0, dashes) if dashes else "-"}
    return {**line, "marker": mark, "markersize": size, "fillstyle": filling, "markerfacecoloralt": "white"}


def _stairs(axis: Axes, points: Sequence[Point], **settings: Any) -> None:
    axis.plot(*_percents(points), drawstyle="steps-pre", **settings)


def _percents(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [tpf for tpf, _ in points], [100 * accuracy for _, accuracy in points]


def _scale(axis: Axes, points: Sequence[Point], room: float = 1.04) -> None:
    """Limits that hold all points, and 100 % always; most of the height goes to where few answers are wrong."""
    tpf, percents = _percents(points)
    top, bottom = _stretched(np.array([100.0, min(97.5, *percents)]))
    margin = 0.06 * (top - bottom)
    limits = _squeezed(np.array([bottom - margin, top + margin]))
    axis.set_yscale("function", functions=(_stretched, _squeezed))
    axis.set(xlim=(0, room * max(tpf)), ylim=limits)
    ticks = [tick for tick in TICKS if tick >= limits[0]]
    axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.locator_params(axis="x", integer=True)
    axis.grid(color="#e3e6ea", linewidth=0.7)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _stretched(percents: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return -np.log1p((100 - percents) / LEAST_ERROR)


def _squeezed(heights: Floats) -> Floats:
    return 100 - LEAST_ERROR * np.expm1(-heights)


def _name(axis: Axes, edges: Mapping[str, Sequence[Point]]) -> None:
    """Put each line's name beside its end, or where that is taken beside another of its points."""
    taken = np.concatenate([_traced(axis, points) for points in edges.values()])
    for family, points in edges.items():
        text = axis.text(0, 0, family, color=look(family).ink, fontsize=11, ha="center", va="center", transform=None)
        size = np.array(text.get_window_extent().size)
        middles = _beside(axis.transData.transform(np.column_stack(_percents(points)))[::-1], size)
        half = (size + 0.3 * size[1]) / 2
        low, high = middles - half, middles + half
        covered = ((taken > low[:, None]) & (taken < high[:, None])).all(axis=2).sum(axis=1)
        outside = np.maximum(axis.bbox.min - low, 0) + np.maximum(high - axis.bbox.max, 0)
        best = np.argmin(10 * (covered + outside.sum(axis=1)) + np.arange(len(middles)))
        text.set_position((middles[best, 0], middles[best, 1]))
        taken = np.concatenate([taken, _filled(low[best], high[best])])


def _beside(points: Floats, size: Floats) -> Floats:
    """Middles of boxes of that size at every side of the points, [points * sides, 2]."""
    middles: Floats = points[:, None] + np.array(SIDES) * (size + size[1]) / 2
    return middles.reshape(-1, 2)


def _traced(axis: Axes, points: Sequence[Point]) -> Floats:
    """Pixels along the stairs, [n, 2], close together."""
    corners = [points[0]]
    for before, after in itertools.pairwise(points):
        corners += [(before[0], after[1]), after]
    pixels = axis.transData.transform(np.column_stack(_percents(corners)))
    return np.concatenate([np.linspace(*pair, 60) for pair in itertools.pairwise([pixels[0], *pixels])])


def _filled(low: Floats, high: Floats) -> Floats:
    """Points all over a box, [n, 2]."""
    across, down = np.meshgrid(*np.linspace(low, high, 20).T)
    return np.column_stack([across.ravel(), down.ravel()])


def _save(figure: Figure, path: Path) -> None:
    # A version in the file would make it differ between machines.
    figure.savefig(path, metadata={"Software": None})
