"""The text of growing tokens, piece by piece, in time linear in their number."""

from __future__ import annotations

from collections.abc import Callable, Sequence

HALF = "\ufffd"
"""What a tokenizer makes of bytes that are no character yet."""

MOST_OF_A_CHARACTER = 3
"""Most bytes, and so most tokens, of a character that is not complete."""

_NEAR = 16
"""Tokens that are looked back upon where no character comes about: so many that the last ones are read as among all."""

Spell = Callable[[Sequence[int]], str]
"""Tells the text of token ids."""


class Speller:
    """Spells tokens one after the other, so that the pieces together are the text of all.

    A piece is what its token adds to the text of those before. A few of them are enough to know: tokenizers look no
    further back than to the beginning of a character or a word. A token that ends in the middle of a character adds
    nothing, and the one that completes the character adds all of it.
    """

    def __init__(self, spell: Spell) -> None:
        self._spell = spell
        self._near: list[int] = []
        """Tokens that are spelled together with the next one."""
        self._known = 0
        """The first so many of them were spelled before the last ones began a character that is not complete."""
        self._told = 0
        """Characters of their text that were told."""
        self._waiting = 0
        """Tokens since one that added something."""

    def add(self, token: int) -> str:
        """The piece of one more token."""
        self._near.append(token)
        self._waiting += 1
        text = self._spell(self._near)
        if not text.endswith(HALF):
            return self._settle(text)
        piece = text.rstrip(HALF)[self._told :]
        if piece:
            self._waiting = 0
        elif self._waiting > MOST_OF_A_CHARACTER:
            # No character begins as early as that, but one may in the last tokens.
            end = len(text) - len(self._spell(self._near[-MOST_OF_A_CHARACTER:]))
            piece = text[self._told : max(self._told, end)]
        self._told += len(piece)
        self._forget(len(text) - self._told)
        return piece

    def rest(self) -> str:
        """What the last tokens add when no more follow: an incomplete character."""
        return self._settle(self._spell(self._near))

    def _forget(self, untold: int) -> None:
        """Look no further back than is needed where characters do not come about for long; so many are not told."""
        if len(self._near) > 2 * _NEAR:
            self._near, self._known = self._near[-_NEAR:], 0
            self._told = max(0, len(self._spell(self._near)) - untold)

    def _settle(self, text: str) -> str:
        """Tell all of the text, and look no further back than to its last tokens from now on."""
        piece = text[self._told :]
        self._near = self._near[self._known :]
        self._known = len(self._near)
        self._told = len(self._spell(self._near))
        self._waiting = 0
        return piece
