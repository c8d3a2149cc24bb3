"""Where strings end an answer: in its text, and in its tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from diffulex_core.pattern import IntArray

_HALF = "\ufffd"
"""What a tokenizer makes of bytes that are no character yet."""

_MOST_OF_A_CHARACTER = 3
"""Most bytes, and so most tokens, of a character that is not complete."""


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
