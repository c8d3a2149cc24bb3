"""The pictures of benchmarks/quality.py: looks that differ, points that are inside, a line for each family."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks import quality_picture
from benchmarks.quality_curves import Curve, Point, area, edge
from benchmarks.quality_sweeps import SWEEPS
from hypothesis import given, settings, strategies as st

pytest.importorskip("matplotlib")

WAYS = sorted({(sweep.model, task, sweep.way) for sweep in SWEEPS for task in sweep.tasks})
PANELS = sorted({(model, task) for model, task, _ in WAYS})
POINTS = st.lists(st.tuples(st.floats(0.1, 40), st.integers(0, 500).map(lambda hits: hits / 500)), min_size=1)


def curve(way: str, points: Sequence[Point], model: str = "m", task: str = "long") -> Curve:
    return Curve(
        model=model,
        task=task,
        way=way,
        points=tuple(sorted(points)),
        edge=edge(points),
        area=area(points),
        fastest=max(points)[0],
        good=None,
    )


MADE_UP = [
    curve(way, [(at % 5 + 1.0, 1.0), (at % 7 + 4.0, 0.98), (at % 3 + 9.0, at % 10 / 10)], model, task)
    for at, (model, task, way) in enumerate(WAYS)
]


def labels(axis: Any) -> list[str]:
    return [line.get_label() for line in axis.get_lines() if not line.get_label().startswith("_")]


@pytest.mark.parametrize("panel", PANELS, ids="-".join)
def test_no_two_ways_of_a_panel_share_an_ink_nor_without_colour_all_the_rest(panel: tuple[str, str]) -> None:
    looks = [quality_picture.look(way) for *place, way in WAYS if tuple(place) == panel]
    assert len({each.ink for each in looks}) == len(looks)
    assert len({each[1:] for each in looks}) == len(looks)


def test_every_way_of_the_sweeps_has_a_look_of_its_family_and_one_within_it() -> None:
    for *_, way in WAYS:
        family, _, rest = way.partition(", ")
        assert family in quality_picture.FAMILIES
        assert rest in quality_picture.TOUCHES
        assert quality_picture.look(way).mark == quality_picture.look(family).mark


def test_a_way_that_nobody_gave_a_look_is_drawn_all_the_same(tmp_path: Path) -> None:
    quality_picture.draw([curve("new", [(1.0, 0.5)]), curve("edit, newer", [(2.0, 0.5)])], tmp_path / "new.png")
    assert (tmp_path / "new.png").read_bytes().startswith(b"\x89PNG")


@given(st.lists(POINTS, min_size=1, max_size=3))
@settings(max_examples=15, deadline=None)
def test_all_points_and_100_percent_are_inside_the_axes(groups: list[list[Point]]) -> None:
    [axis] = quality_picture.whole([curve(f"way {at}", points) for at, points in enumerate(groups)]).axes
    (left, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()
    assert left < min(tpf for points in groups for tpf, _ in points)
    assert right > max(tpf for points in groups for tpf, _ in points)
    assert bottom < 100 * min(accuracy for points in groups for _, accuracy in points)
    assert top > 100
    assert 100 in axis.get_yticks()


def test_an_answer_in_200_that_is_wrong_is_seen_as_well_as_one_in_five_beside_one_in_ten() -> None:
    [axis] = quality_picture.whole([curve("edit", [(1.0, 1.0), (2.0, 0.5)])]).axes
    _, heights = axis.transData.transform(np.column_stack([np.ones(4), [100, 99.5, 90, 80]])).T
    assert heights[0] - heights[1] >= heights[2] - heights[3] > 0


def test_the_legend_names_all_ways_of_a_panel_the_largest_area_first() -> None:
    points = {"edit": (3.0, 1.0), "dmax": (12.0, 0.9), "multi_bd": (7.0, 1.0)}
    [axis] = quality_picture.whole([curve(way, [point]) for way, point in points.items()]).axes
    legend = axis.get_legend()
    assert legend is not None
    assert [text.get_text().split()[1] for text in legend.get_texts()] == ["dmax", "multi_bd", "edit"]


def test_the_overview_has_a_line_for_each_family_along_the_best_of_its_ways() -> None:
    slow, fast = [(1.0, 1.0), (2.0, 0.6)], [(2.0, 0.9), (4.0, 0.5)]
    ways = [curve("edit, one block", slow), curve("dmax", slow), curve("edit", fast)]
    [axis] = quality_picture.overview(ways).axes
    assert labels(axis) == ["edit", "dmax"] == [text.get_text() for text in axis.texts]
    assert np.array(axis.get_lines()[0].get_data()).T.tolist() == [[1, 100], [2, 90], [4, 50]]


def test_the_overview_shows_long_problems_where_a_model_was_asked_some() -> None:
    asked = [("a", "two_step"), ("b", "long"), ("b", "two_step"), ("c", "two_step"), ("c", "long")]
    figure = quality_picture.overview([curve("edit", [(1.0, 1.0)], *panel) for panel in asked])
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles == ["tiny/a, two-step problems", "tiny/b, long problems", "tiny/c, long problems"]


def test_names_in_the_overview_neither_overlap_nor_leave_their_axes() -> None:
    for axis in quality_picture.overview(MADE_UP).axes:
        boxes = [text.get_window_extent() for text in axis.texts]
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
        assert all(axis.bbox.contains(*corner) for box in boxes for corner in box.corners())


@pytest.mark.parametrize("drawing", [quality_picture.draw, quality_picture.draw_overview])
def test_a_picture_that_is_drawn_again_is_the_same_file(
    drawing: Callable[[Sequence[Curve], Path], None], tmp_path: Path
) -> None:
    paths = [tmp_path / "once.png", tmp_path / "again.png"]
    for path in paths:
        drawing([each for each in MADE_UP if each.model == "llada2"], path)
    once, again = (path.read_bytes() for path in paths)
    assert once == again
    assert once.startswith(b"\x89PNG")
    assert b"tEXt" not in once.partition(b"IDAT")[0]
