"""A network of hashes: whatever a row reads wrongly changes what it decides.

A layer's key/value pair is the row's hidden number before the layer; attention hashes all visible pairs in order. So a
pair of a later layer depends on everything that its row saw when it was computed, as in a transformer: a wrong page,
a wrong slot, a stale pair, or visibility that is off by one ends in other tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

WORDS = 12
"""Tokens 0 .. WORDS - 1 are decided; `EOS` is one of them."""
EOS = 7
MASK = 99
LAYERS = 3

_TOP = 2**64
_PRIME = 0x9E3779B97F4A7C15


def embed(token: int, position: int) -> int:
    """Hidden number before the first layer."""
    return hash((token, position))


def digest(pairs: Sequence[int]) -> int:
    """What attention makes of the visible pairs of one layer."""
    return hash(tuple(pairs))


def mix(hidden: int, attended: int) -> int:
    """Hidden number after a layer."""
    return hash((hidden, attended))


def join(own: int, second: int, scale: float) -> int:
    """What a guided row decides from: its own final hidden number and the one of the second sequence."""
    return hash((own, second, scale))


def favourites(pairs: Sequence[int], keep: int) -> list[int]:
    """The pairs of a full pass that the network's cache policy keeps, in order; which ones depends on all of them."""
    among = digest(pairs)
    best = sorted(range(len(pairs)), key=lambda at: hash((pairs[at], among, at)))[:keep]
    return [pairs[at] for at in sorted(best)]


def choose(seed: int, draw: int, position: int, hidden: int) -> tuple[int, float]:
    """The token that a row's final hidden number stands for in step `draw` of a request, and a confidence in [0, 1)."""
    number = hash((seed, draw, position, hidden)) * _PRIME % _TOP
    number ^= number >> 29
    number = number * 0xBF58476D1CE4E5B9 % _TOP
    return number % WORDS, (number >> 40) / 2.0**24
