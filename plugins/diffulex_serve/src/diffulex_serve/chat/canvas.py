"""What an answer shows behind its final text, from the events of its stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class Canvas:
    """The positions of an answer: each with the text of its token, or without one."""

    def __init__(self) -> None:
        self._texts: list[str | None] = []
        self._final = 0

    def take(self, event: Mapping[str, Any]) -> None:
        """Take in an event of the stream protocol; others than changes of positions change nothing."""
        match event:
            case {"event": "block_open", "start": int(start), "len": int(length)}:
                self._widen(start + length)
            case {"event": "fill" | "rewrite", "pos": positions, "text": texts}:
                for position, text in zip(positions, texts, strict=True):
                    self._widen(position + 1)
                    self._texts[position] = text
            case {"event": "remask", "pos": positions}:
                for position in positions:
                    self._texts[position] = None
            case {"event": "block_commit", "start": int(start), "token_ids": tokens}:
                self._final = start + len(tokens)

    @property
    def draft(self) -> Sequence[str | None]:
        """Texts behind the final ones; None where nothing is decided."""
        return self._texts[self._final :]

    def _widen(self, length: int) -> None:
        self._texts += [None] * (length - len(self._texts))
