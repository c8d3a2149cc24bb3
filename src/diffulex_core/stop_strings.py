"""Where strings end an answer: in its text, and in its tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from diffulex_core.pattern import IntArray

_HALF = "\ufffd"
"""What a tokenizer makes of bytes that are no character yet."""

_MOST_OF_A_CHARACTER = 3
"""Most bytes, and so most tokens, of a character that is not complete."""


_STRIPPED = 8
"""Characters at the beginning of a text that a tokenizer may spell otherwise when more stands before them."""


class StopSearch:
    """Looks for stop strings in growing tokens, and spells no more of them than may hold a new one."""

    def __init__(self, stop: Sequence[str], text_of: Callable[[IntArray], str]) -> None:
        """`text_of` tells the text of tokens."""
        self._stop = stop
        self._text_of = text_of
        self._before = max(map(len, stop), default=0) + _STRIPPED
        self._searched: IntArray = np.empty(0, dtype=np.int64)
        """Tokens whose text holds no stop string."""

    def finds(self, tokens: IntArray) -> bool:
        """Whether the text of the tokens holds a stop string. Tokens that are not new may have been replaced."""
        known = min(len(self._searched), len(tokens))
        changed = np.flatnonzero(self._searched[:known] != tokens[:known])
        known = int(changed[0]) if len(changed) else known
        if known == len(tokens):
            return False
        text = self._text_of(tokens[self._begin(tokens, known) :])
        # The text of a part may differ at its beginning, so what was found counts where all is spelled.
        if first_stop(text, self._stop) is not None and first_stop(self._text_of(tokens), self._stop) is not None:
            return True
        self._searched = tokens
        return False

    def _begin(self, tokens: IntArray, known: int) -> int:
        """Where to begin, so that a stop string which ends behind the first `known` tokens is spelled as a whole."""
        begin, back = known, self._before
        while begin > 0:
            begin, back = max(0, known - back), 2 * back
            # Halves of characters at either end are no text: what they belong to has to be spelled as a whole.
            if len(self._text_of(tokens[begin:known]).strip(_HALF)) >= self._before:
                break
        return begin


def first_stop(text: str, stop: Sequence[str]) -> int | None:
    """Where the earliest stop string begins, or None."""
    found = [at for at in map(text.find, stop) if at >= 0]
    return min(found) if found else None


def settled(text: str, stop: Sequence[str]) -> str:
    """The part of a growing text that stays: without what may become a stop string at its end."""
    begun = (length for each in stop for length in range(len(each), 0, -1) if text.endswith(each[:length]))
    return text[: len(text) - max(begun, default=0)]


def readable(tokens: IntArray, text_of: Callable[[IntArray], str]) -> str:
    """The text of growing tokens without half a character at its end.

    Tokenizers with a token for each byte make nothing of a whole run of them until its last character is complete.
    Leaving out the bytes of that one, at most three, keeps those before it readable.
    """
    text = text_of(tokens)
    if not text.endswith(_HALF):
        return text
    shorter = (text_of(tokens[: len(tokens) - fewer]) for fewer in range(1, min(_MOST_OF_A_CHARACTER, len(tokens)) + 1))
    return max((each.rstrip(_HALF) for each in (text, *shorter)), key=len)


def tokens_of(text: str, tokens: IntArray, text_of: Callable[[IntArray], str]) -> IntArray:
    """The fewest leading tokens that hold `text`, with which the text of all of them begins; `text_of` tells it."""
    low, high = 0, len(tokens)
    while low < high:
        middle = (low + high) // 2
        if text_of(tokens[:middle]).startswith(text):
            high = middle
        else:
            low = middle + 1
    return tokens[:low]
