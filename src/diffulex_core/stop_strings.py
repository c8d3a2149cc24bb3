"""Where strings end an answer: in its text, and in its tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from diffulex_core.pattern import IntArray

_HALF = "\ufffd"
"""What a tokenizer makes of bytes that are no character yet."""


def first_stop(text: str, stop: Sequence[str]) -> int | None:
    """Where the earliest stop string begins, or None."""
    found = [at for at in map(text.find, stop) if at >= 0]
    return min(found) if found else None


def settled(text: str, stop: Sequence[str]) -> str:
    """The part of a growing text that stays: without half a character, or what may become a stop string, at its end."""
    text = text.rstrip(_HALF)
    begun = (length for each in stop for length in range(len(each), 0, -1) if text.endswith(each[:length]))
    return text[: len(text) - max(begun, default=0)]


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
