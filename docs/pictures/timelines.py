"""How an answer fills up, as a picture: a line for each forward, a column for each position."""

from __future__ import annotations

import attrs

from docs.pictures.moments import Moment
from docs.pictures.svg import CELL, LETTER, Element, document, group, page, paragraph, path, rect, text

MARGIN, GAP, LABEL, ROWS = 16, 22, 62, 50
LINE = CELL + 3
LEGEND = {
    "fresh": "decided in this forward",
    "edited": "replaced in this forward",
    "answer": "decided before",
    "stored": "in a stored block, fed no more",
    "mask": "mask",
}


@attrs.frozen(kw_only=True)
class Film:
    """The forwards of one answer, with a caption."""

    head: str
    words: str
    moments: tuple[Moment, ...]
    block: int | None = 4


@attrs.frozen(kw_only=True)
class Timeline:
    """A picture: films one below the other."""

    name: str
    title: str
    description: str
    films: tuple[Film, ...]
    column: int = 34


def draw(timeline: Timeline) -> str:
    """The picture as an SVG file."""
    columns = max(len(moment.words) for film in timeline.films for moment in film.moments)
    heights = [44 + len(film.moments) * LINE for film in timeline.films]
    shown = [name for name in LEGEND if any(name in m.states for film in timeline.films for m in film.moments)]
    legend = sum(_wide(name) for name in shown)
    words = max(LETTER * len(film.words) for film in timeline.films)
    width = 2 * MARGIN + max(LABEL + columns * timeline.column + ROWS, legend, words)
    height = MARGIN + sum(heights) + GAP * len(heights) + 26
    root = page(width, height, title=timeline.title, description=timeline.description)
    top = float(MARGIN)
    for index, (film, tall) in enumerate(zip(timeline.films, heights, strict=True)):
        text(root, MARGIN, top + 10, film.head, "head ink")
        paragraph(root, MARGIN, top + 25, film.words, 10_000)
        _film(group(root, MARGIN, top + 44, f"film-{index}"), film, columns, timeline.column)
        top += tall + GAP
    x = float(MARGIN)
    for name in shown:
        rect(root, x, top, CELL - 2, CELL - 2, name, radius=2)
        text(root, x + 20, top + 11, LEGEND[name], "soft")
        x += _wide(name)
    return document(root)


def _wide(name: str) -> float:
    return 36 + 5.8 * len(LEGEND[name])


def _film(parent: Element, film: Film, columns: int, column: int) -> None:
    text(parent, LABEL + columns * column + 6, -4, "rows", "soft")
    for line, moment in enumerate(film.moments):
        text(parent, 0, line * LINE + 12, f"forward {line + 1}", "soft")
        text(parent, LABEL + columns * column + 8, line * LINE + 12, str(moment.rows), "soft")
    cells = group(parent, LABEL, 0)
    cells.set("class", "cells")
    for name in LEGEND:
        steps = "".join(
            f"M{at * column + 1} {line * LINE}h{column - 2}v{CELL}h{2 - column}z"
            for line, moment in enumerate(film.moments)
            for at, state in enumerate(moment.states)
            if state == name
        )
        if steps:
            path(cells, steps, name, line=False)
    for kind in ("ink", "onfresh"):
        words = group(cells, column / 2, 11.5)
        words.set("class", f"tok {kind}")
        for line, moment in enumerate(film.moments):
            for at, (word, state) in enumerate(zip(moment.words, moment.states, strict=True)):
                if word and (state in ("fresh", "edited")) == (kind == "onfresh"):
                    text(words, at * column, line * LINE, word, None)
    _bounds(cells, film, columns, column)


def _bounds(cells: Element, film: Film, columns: int, column: int) -> None:
    if film.block is None:
        return
    start, tall = film.moments[0].start, len(film.moments) * LINE
    at = (-start % film.block) or film.block
    steps = "".join(f"M{column * each} -3V{tall}" for each in range(at, columns, film.block))
    path(cells, steps, "edge")
