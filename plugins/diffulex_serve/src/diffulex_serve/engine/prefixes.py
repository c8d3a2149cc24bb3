"""Which replica has lately seen the beginning of a prompt, and so may have it in its cache."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

TOKENS_PER_BLOCK = 32
MOST_BLOCKS = 64
"""Of a prompt that count: its first 2,048 tokens."""

Prefix = tuple[bytes, ...]
"""For each of a prompt's first whole blocks a hash of everything up to its end."""


def prefix_of(prompt: Sequence[int]) -> Prefix:
    """The hashes of a prompt's first blocks."""
    hashes, before = [], b""
    for start in range(0, min(len(prompt) // TOKENS_PER_BLOCK, MOST_BLOCKS) * TOKENS_PER_BLOCK, TOKENS_PER_BLOCK):
        block = ",".join(map(str, prompt[start : start + TOKENS_PER_BLOCK]))
        before = blake2b(before + block.encode(), digest_size=12).digest()
        hashes.append(before)
    return tuple(hashes)


class SeenPrefixes:
    """The prefixes that one replica served last."""

    def __init__(self, most: int = 8192) -> None:
        """`most`: hashes that are remembered; the oldest are forgotten first."""
        self._most = most
        self._hashes: OrderedDict[bytes, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._hashes)

    def matched(self, prefix: Prefix) -> int:
        """Tokens at the beginning of a prompt that were seen."""
        blocks = next((at for at, each in enumerate(prefix) if each not in self._hashes), len(prefix))
        return blocks * TOKENS_PER_BLOCK

    def note(self, prefix: Prefix) -> None:
        """The replica serves a prompt with this prefix."""
        # Backwards, so that a prefix is forgotten from its end.
        for each in reversed(prefix):
            self._hashes[each] = None
            self._hashes.move_to_end(each)
        while len(self._hashes) > self._most:
            self._hashes.popitem(last=False)

    def clear(self) -> None:
        """Its cache is empty."""
        self._hashes.clear()
