"""Text that stays and, behind it, text that is replaced: what to write to a terminal for that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import attrs
from rich.cells import cell_len

_HOME, _UP, _RIGHT, _ERASE_BELOW = "\r", "\x1b[{}A", "\x1b[{}C", "\x1b[J"
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
_TAB = "    "
_SHORTEST = 2
"""Lines and columns that a terminal has at least; those of windows that are closed to nothing are not believed."""


@attrs.frozen(kw_only=True)
class Place:
    """A line, counted from where the text began, and a column. The column after the last one is one of its line's.

    A character that finds no room stands at the beginning of the next line, as terminals put it.
    """

    line: int = 0
    column: int = 0

    def after(self, character: str, width: int) -> Place:
        """The place behind a character that is written here."""
        if character == "\n":
            return Place(line=self.line + 1)
        cells = cell_len(character)
        if self.column + cells > width:
            return Place(line=self.line + 1, column=cells)
        return attrs.evolve(self, column=self.column + cells)


class LiveText:
    """An answer in a terminal. It begins at the beginning of a line."""

    def __init__(self, *, mask: str, dim: bool) -> None:
        """`mask` stands where nothing is decided; `dim`: drafts may be written dim."""
        self._mask = mask
        self._dim = dim
        self._end = Place()
        """Of the text that stays."""
        self._cursor = Place()
        self._wrapped = False
        """That text filled its line, so that the end of a line is there already."""

    def show(self, text: str, draft: Sequence[str | None], *, width: int, height: int) -> str:
        """What replaces the draft before by more text that stays, and a draft; of that as much as the window holds."""
        width, height = max(_SHORTEST, width), max(_SHORTEST, height)
        text = text.replace("\t", _TAB)
        if text:
            text = text.removeprefix("\n") if self._wrapped else text
            self._wrapped = False
        parts = [self._back(), text]
        for character in text:
            self._end = self._end.after(character, width)
        if self._end.column >= width:
            parts.append(" \r")  # a terminal moves on to the next line only when something is written there
            self._end = Place(line=self._end.line + 1)
            self._wrapped = True
        self._cursor = self._end
        behind = "".join(self._mask if piece is None else piece for piece in draft).replace("\t", _TAB)
        shown = "".join(self._fitting(behind.removeprefix("\n") if self._wrapped else behind, width, height - 1))
        if shown:
            parts += [_DIM, shown, _PLAIN] if self._dim else [shown]
        return "".join(parts)

    def close(self) -> str:
        """What takes away the draft, and whatever was typed meanwhile, and begins a line."""
        back, fresh = self._to_end(), self._end.column == 0
        self._end = self._cursor = Place()
        self._wrapped = False
        return back + ("" if fresh else "\n")

    def _back(self) -> str:
        """What takes away the draft, where there is one."""
        return "" if self._cursor == self._end else self._to_end()

    def _to_end(self) -> str:
        """What leads back to the end of the text that stays and erases all behind it."""
        up, right = self._cursor.line - self._end.line, self._end.column
        moves = [_UP.format(up)] * bool(up) + [_RIGHT.format(right)] * bool(right)
        return "".join([_HOME, *moves, _ERASE_BELOW])

    def _fitting(self, draft: str, width: int, lines: int) -> Iterator[str]:
        for character in draft:
            place = self._cursor.after(character, width)
            if place.line - self._end.line >= lines:
                return
            self._cursor = place
            yield character
