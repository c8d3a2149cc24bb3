"""A group of ranks played by threads of this process, so that divided networks run without spawning anything."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, BrokenBarrierError
from typing import Literal, TypeVar

import attrs
import torch
from torch import Tensor

from diffulex_core.distributed import Communicator

T = TypeVar("T")
Kind = Literal["sum", "max", "gather", "end"]


@attrs.frozen(kw_only=True)
class Collective:
    """One exchange, as each of the ranks saw it.

    Attributes:
        kind: the method; "end" when a rank has returned.
        shape: of the tensor that one rank gave.
        dtype: its dtype.
    """

    kind: Kind
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numbers(self) -> int:
        """How many numbers each rank gave."""
        return torch.Size(self.shape).numel()


class ThreadGroup:
    """Runs the same function as every rank and keeps a log of what they exchanged.

    Results are those of a rank order, whatever the order in which threads run. A rank that raises, or that does not
    come to a collective within `seconds`, ends the others. Ranks that call different collectives, or that return while
    others call one, are an error.
    """

    def __init__(self, size: int, *, seconds: float = 30.0) -> None:
        self.size = size
        self.log: list[Collective] = []
        self._barrier = Barrier(size, timeout=seconds)
        self._laid: list[tuple[Collective, Tensor] | None] = [None] * size

    def run(self, work: Callable[[Communicator], T]) -> list[T]:
        """What `work` returns on each rank. Raises what the first rank to fail raised."""
        with ThreadPoolExecutor(self.size) as pool:
            futures = [pool.submit(self._one, work, rank) for rank in range(self.size)]
        errors = [error for error in (future.exception() for future in futures) if error is not None]
        for error in _causes_first(errors):
            raise error
        return [future.result() for future in futures]

    def exchange(self, rank: int, kind: Kind, x: Tensor) -> Tensor:
        """[size, ...] what all ranks gave, in rank order; the same tensor for no two ranks."""
        said = Collective(kind=kind, shape=tuple(x.shape), dtype=x.dtype)
        self._laid[rank] = (said, x.clone())
        self._barrier.wait()
        laid = [each for each in self._laid if each is not None]
        if {each for each, _ in laid} != {said}:
            raise AssertionError(f"rank {rank} calls {said}, all together {[each for each, _ in laid]}")
        together = torch.stack([tensor for _, tensor in laid])
        if rank == 0 and kind != "end":
            self.log.append(said)
        self._barrier.wait()
        return together

    def _one(self, work: Callable[[Communicator], T], rank: int) -> T:
        try:
            result = work(Member(rank, self))
            self.exchange(rank, "end", torch.empty(0))
        except BaseException:  # whatever it is, the others must not wait for this rank
            self._barrier.abort()
            raise
        return result


@attrs.frozen(eq=False)
class Member:
    """One rank of a `ThreadGroup`; a `Communicator`."""

    rank: int
    group: ThreadGroup

    @property
    def size(self) -> int:
        return self.group.size

    def sum(self, x: Tensor) -> Tensor:
        total, *others = self.group.exchange(self.rank, "sum", x).unbind()
        for other in others:
            total += other
        x.fill_(0)  # the contract allows that it is overwritten, so nobody may read it again
        return total

    def max(self, x: Tensor) -> Tensor:
        best = self.group.exchange(self.rank, "max", x).amax(dim=0)
        x.fill_(0)
        return best

    def gather(self, x: Tensor) -> Tensor:
        return self.group.exchange(self.rank, "gather", x)


def together(size: int, work: Callable[[Communicator], T]) -> list[T]:
    """What `work` returns on each of `size` ranks."""
    return ThreadGroup(size).run(work)


def _causes_first(errors: Iterable[BaseException]) -> list[BaseException]:
    """Ranks that were only told that another one failed come last."""
    return sorted(errors, key=lambda error: isinstance(error, BrokenBarrierError))
