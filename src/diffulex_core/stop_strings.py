"""Where strings end an answer: in its text, and in its tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from diffulex_core.pattern import IntArray


def first_stop(text: str, stop: Sequence[str]) -> int | None:
    """Where the earliest stop string begins, or None."""
    found = [at for at in map(text.find, stop) if at >= 0]
    return min(found) if found else None


def tokens_before(tokens: IntArray, stop: Sequence[str], text_of: Callable[[IntArray], str]) -> IntArray:
    """The most leading tokens whose text, which `text_of` tells, holds no stop string."""
    low, high = 0, len(tokens)
    while low < high:
        middle = (low + high + 1) // 2
        if first_stop(text_of(tokens[:middle]), stop) is None:
            low = middle
        else:
            high = middle - 1
    return tokens[:low]
