"""Which part of a dimension each process of a group holds."""

from __future__ import annotations

import attrs

from diffulex_core.distributed.communicator import Communicator
from diffulex_core.errors import ConfigError


@attrs.frozen
class Range:
    """A contiguous part `[start, start + length)` of a dimension.

    Attributes:
        start: first index.
        length: indices that are held; 0 for a process that holds nothing.
        size: length of the whole dimension.
    """

    start: int
    length: int
    size: int

    def scaled(self, width: int) -> Range:
        """The same part where every index stands for `width` of them."""
        return Range(self.start * width, self.length * width, self.size * width)


def whole(size: int) -> Range:
    """All of a dimension."""
    return Range(0, size, size)


def even_range(size: int, group: Communicator, what: str) -> Range:
    """The rank's part of a dimension that is divided evenly; `what` names it in the error.

    Raises:
        ConfigError: the group's size does not divide it.
    """
    if size % group.size:
        raise ConfigError([f"tensor_parallel_size {group.size} does not divide {what}, which is {size}."])
    length = size // group.size
    return Range(group.rank * length, length, size)


def padded_range(size: int, group: Communicator) -> tuple[Range, int]:
    """The rank's part of a dimension that is padded to a multiple of the group's size (a vocabulary).

    Returns:
        The indices that are held, and the length with padding, equal on all ranks. The padding is at the end of the
        last ranks' parts.
    """
    padded = -(-size // group.size)
    start = min(group.rank * padded, size)
    return Range(start, min(padded, size - start), size), padded


def kv_head_range(num_heads: int, num_kv_heads: int, group: Communicator) -> Range:
    """The key/value heads that the rank's query heads read.

    With fewer of them than processes, each one is held by several neighbouring ranks.

    Raises:
        ConfigError: no even division of query and key/value heads exists.
    """
    even_range(num_heads, group, "the number of query heads")
    if num_kv_heads >= group.size:
        return even_range(num_kv_heads, group, "the number of key/value heads")
    if group.size % num_kv_heads:
        raise ConfigError(
            [f"tensor_parallel_size {group.size} is no multiple of the number of key/value heads, {num_kv_heads}."]
        )
    return Range(group.rank // (group.size // num_kv_heads), 1, num_kv_heads)
