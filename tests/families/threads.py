"""A group of processes played by threads, for tests of layers that are divided."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import attrs
import torch
from torch import Tensor

from diffulex_core.distributed import Communicator

T = TypeVar("T")


@attrs.frozen(eq=False)
class Table:
    """Where the members of a group lay down what they say."""

    barrier: Barrier
    said: list[Tensor]


@attrs.frozen(eq=False)
class Member:
    """One member of a group of threads."""

    rank: int
    size: int
    table: Table

    def gather(self, x: Tensor) -> Tensor:
        self.table.barrier.wait(timeout=60)
        self.table.said[self.rank] = x.clone()
        self.table.barrier.wait(timeout=60)
        return torch.stack(self.table.said)

    def sum(self, x: Tensor) -> Tensor:
        return self.gather(x).sum(0)

    def max(self, x: Tensor) -> Tensor:
        return self.gather(x).amax(0)


def together(size: int, work: Callable[[Communicator], T]) -> list[T]:
    """What `work` returns to each of `size` members that run at once."""
    table = Table(Barrier(size), [torch.empty(0)] * size)

    def one(rank: int) -> T:
        try:
            return work(Member(rank, size, table))
        except BaseException:
            table.barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(one, range(size)))
