"""What the processes that share a model say to each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

import attrs

if TYPE_CHECKING:
    from torch import Tensor


@runtime_checkable
class Communicator(Protocol):
    """One process's view of its group. Every method is a collective: all ranks call it in the same order."""

    @property
    def rank(self) -> int:
        """This process, from 0."""
        ...

    @property
    def size(self) -> int:
        """Processes in the group."""
        ...

    def sum(self, x: Tensor) -> Tensor:
        """Elementwise sum over the ranks, with the same bits on all of them; `x` may be overwritten."""
        ...

    def max(self, x: Tensor) -> Tensor:
        """Elementwise maximum over the ranks, NaN where one has NaN; `x` may be overwritten."""
        ...

    def gather(self, x: Tensor) -> Tensor:
        """[...] of each rank, all of one shape -> [size, ...]."""
        ...


@attrs.frozen
class _Alone:
    """A group of one."""

    rank: int = 0
    size: int = 1

    def sum(self, x: Tensor) -> Tensor:
        return x

    def max(self, x: Tensor) -> Tensor:
        return x

    def gather(self, x: Tensor) -> Tensor:
        return x[None]


@attrs.frozen
class Seat:
    """A place in a group that does not exist: networks can be built for it, to see whether they can, but not run."""

    rank: int
    size: int

    def sum(self, x: Tensor) -> Tensor:
        raise AssertionError("nobody sits in the other seats")

    def max(self, x: Tensor) -> Tensor:
        raise AssertionError("nobody sits in the other seats")

    def gather(self, x: Tensor) -> Tensor:
        raise AssertionError("nobody sits in the other seats")


ALONE: Communicator = _Alone()
"""The group of an engine that runs in one process."""
