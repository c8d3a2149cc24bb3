"""Who sees whom in one forward, as a picture: a row for each token that is fed, a column for each key."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from docs.pictures.scripted import Example, Fed
from docs.pictures.svg import CELL, Element, chip, document, group, lines, page, paragraph, path, rect, text

MARGIN, GAP, LEAST = 16, 24, 560
STRIP = CELL + 8
"""The column of tokens at the left of a panel, and the row of tokens above it."""
MARKS = 2 * 12 + 4
LEGEND = {
    "now": "seen; its key is computed in this forward",
    "cache": "seen; its key is stored, final",
    "stale": "seen; its key is of an earlier forward",
    "none": "not seen",
    "prompt": "prompt",
    "answer": "decided",
    "mask": "mask",
    "noise": "noise",
    "kept": "kept of a token outside the block",
    "asked": "this row's logits are looked at",
    "final": "this row's key and value are final",
}
LETTERS = {"prompt": "p", "mask": "M", "noise": "~", "kept": "k"}
"""What stands for a token in the axes; decided ones have letters of their own."""


@attrs.frozen(kw_only=True)
class Panel:
    """One forward of an example.

    Attributes:
        forward: which one, counted from 0.
        head, words: the caption.
        sequence: 1 = the second sequence of guidance.
        kind: which kind of layer.
    """

    forward: int
    head: str
    words: str
    sequence: int = 0
    kind: int = 0


@attrs.frozen(kw_only=True)
class Scene:
    """A picture: forwards of one example side by side.

    Attributes:
        blocks: where lines are drawn: first position, and distance.
    """

    name: str
    title: str
    description: str
    example: Example
    panels: tuple[Panel, ...]
    blocks: tuple[int, int] = (0, 4)


def draw(scene: Scene, fed: Sequence[Fed]) -> str:
    """The picture as an SVG file; `fed` is what each panel's forward feeds."""
    widths = [STRIP + len(each.kinds) * CELL + MARKS for each in fed]
    top = MARGIN + max(map(_caption, scene.panels, widths))
    bottom = top + 12 + STRIP + max(len(each.rows) for each in fed) * CELL + GAP
    total = max(2 * MARGIN + sum(widths) + GAP * (len(widths) - 1), LEAST)
    legend = _legend_rows(_shown(fed, scene.panels), total - 2 * MARGIN)
    root = page(total, bottom + 18 * len(legend) + 6, title=scene.title, description=scene.description)
    left = float(MARGIN)
    for index, (panel, each, width) in enumerate(zip(scene.panels, fed, widths, strict=True)):
        text(root, left, MARGIN + 10, panel.head, "head ink")
        paragraph(root, left, MARGIN + 25, panel.words, width)
        _panel(group(root, left, top, f"panel-{index}"), each, panel.kind, scene.blocks)
        left += width + GAP
    _legend(group(root, MARGIN, bottom), legend)
    return document(root)


def _caption(panel: Panel, width: float) -> float:
    """Height of a panel's caption."""
    return 16 + 14 * len(lines(panel.words, width)) + 6


def _panel(parent: Element, fed: Fed, kind: int, blocks: tuple[int, int]) -> None:
    keys, rows = len(fed.kinds), fed.rows.tolist()
    text(parent, CELL / 2, 24, "rows", "tok soft")
    text(parent, STRIP + CELL, 8, "keys", "tok soft")
    for key in range(keys):
        chip(parent, STRIP + key * CELL, 12, fed.kinds[key], _letter(fed, key))
    cells = group(parent, STRIP, 12 + STRIP)
    cells.set("class", "cells")
    rect(cells, 0, 0, keys * CELL, len(rows) * CELL, "none")
    for index, row in enumerate(rows):
        for first, end, kept in _runs(fed, index, kind):
            rect(cells, first * CELL, index * CELL, (end - first) * CELL, CELL, kept)
        chip(cells, -STRIP, index * CELL, fed.kinds[row], _letter(fed, row))
        middle = index * CELL + CELL / 2
        if fed.asked[index]:
            rect(cells, keys * CELL + 6, middle - 4, 8, 8, "mark", radius=4)
        if fed.final[index]:
            rect(cells, keys * CELL + 18, middle - 4, 8, 8, "now")
    path(cells, "".join(f"M{key * CELL} 0v{len(rows) * CELL}" for key in range(1, keys)), "line")
    path(cells, "".join(f"M0 {row * CELL}h{keys * CELL}" for row in range(1, len(rows))), "line")
    packed = fed.kinds.count("kept")
    _bounds(cells, keys, rows, [packed] if packed else range(blocks[0], keys, blocks[1]))


def _bounds(cells: Element, keys: int, rows: list[int], starts: Sequence[int]) -> None:
    """Lines where blocks begin."""
    tall, wide = len(rows) * CELL, keys * CELL
    steps = "".join(f"M{at * CELL} -3v{tall + 3}" for at in starts if at > 0)
    steps += "".join(f"M-3 {(at - rows[0]) * CELL}h{wide + 3}" for at in starts if rows[0] < at <= rows[-1])
    path(cells, steps, "edge")


def _runs(fed: Fed, index: int, kind: int) -> list[tuple[int, int, str]]:
    """The keys that a row sees, as runs of those that are computed now, stored, or left by an earlier forward."""
    runs = list[tuple[int, int, str]]()
    present = set(fed.rows.tolist())
    for key in range(int(fed.key_start[kind, index]), int(fed.key_end[kind, index])):
        kept = "now" if key in present else "cache" if key < fed.stored else "stale"
        if runs and runs[-1][2] == kept:
            runs[-1] = (runs[-1][0], key + 1, kept)
        else:
            runs.append((key, key + 1, kept))
    return runs


def _letter(fed: Fed, position: int) -> str:
    return LETTERS.get(fed.kinds[position]) or chr(ord("a") + int(fed.tokens[position]))


def _shown(fed: Sequence[Fed], panels: Sequence[Panel]) -> list[str]:
    """What the legend has to explain."""
    found = {kind for each in fed for kind in each.kinds}
    for each, panel in zip(fed, panels, strict=True):
        keys, seen = len(each.kinds), each.key_end[panel.kind] - each.key_start[panel.kind]
        if (seen < keys).any():
            found.add("none")
        found |= {kept for index in range(len(each.rows)) for _, _, kept in _runs(each, index, panel.kind)}
    if any(each.asked.any() for each in fed):
        found.add("asked")
    if any(each.final.any() for each in fed):
        found.add("final")
    return [name for name in LEGEND if name in found]


def _legend_rows(shown: list[str], width: float) -> list[list[tuple[str, float]]]:
    """Names and their left edges, line by line."""
    rows, x = list[list[tuple[str, float]]]([[]]), 0.0
    for name in shown:
        wide = 22 + 5.9 * len(LEGEND[name]) + 14
        if rows[-1] and x + wide > width:
            rows.append([])
            x = 0.0
        rows[-1].append((name, x))
        x += wide
    return rows


def _legend(parent: Element, rows: list[list[tuple[str, float]]]) -> None:
    letters = {"answer": "a", **LETTERS}
    for line, row in enumerate(rows):
        for name, x in row:
            y = 18 * line
            if name == "asked":
                rect(parent, x + 4, y + 4, 8, 8, "mark", radius=4)
            elif name == "final":
                rect(parent, x + 4, y + 4, 8, 8, "now")
            elif name in letters:
                chip(parent, x, y, name, letters[name])
            else:
                rect(parent, x + 1, y + 1, CELL - 2, CELL - 2, name)
            text(parent, x + 21, y + 12, LEGEND[name], "soft")
