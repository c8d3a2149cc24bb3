"""Hidden rows that outlive a step: one for each request whose next decision needs a row that is not fed again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from diffulex_core.transfer import on_device

_FIRST_CAPACITY = 8


class HiddenRows:
    """A table on the device of one row [hidden] for each of some requests, by request id.

    Rows are copied in and out, and never to the host. The table grows as needed and is reused as requests end.
    """

    def __init__(self) -> None:
        self._table: Tensor | None = None
        self._place: dict[int, int] = {}
        self._free: list[int] = []

    def __len__(self) -> int:
        return len(self._place)

    def keep(self, requests: Sequence[int], rows: Tensor) -> None:
        """Remember [n, hidden] rows of n different requests, in place of what they had."""
        for request in requests:
            if request not in self._place:
                if not self._free:
                    self._table = self._grown(rows)
                self._place[request] = self._free.pop()
        if self._table is not None:
            self._table[self._places(requests)] = rows

    def take(self, requests: Sequence[int]) -> Tensor:
        """[n, hidden] copies of the rows of n requests. KeyError for one that has none."""
        if self._table is None:
            raise KeyError(f"no row was kept for requests {list(requests)}")
        return self._table[self._places(requests)]

    def drop(self, requests: Iterable[int]) -> None:
        """Forget the rows of these requests; those that have none are left out."""
        for request in requests:
            place = self._place.pop(request, None)
            if place is not None:
                self._free.append(place)

    def _places(self, requests: Sequence[int]) -> Tensor:
        device = torch.device("cpu") if self._table is None else self._table.device
        return on_device([self._place[request] for request in requests], device, torch.int64)

    def _grown(self, like: Tensor) -> Tensor:
        """A larger table with the same rows, and its new places free."""
        old = like[:0] if self._table is None else self._table
        new = like.new_zeros(max(_FIRST_CAPACITY, len(old)), like.shape[1])
        self._free.extend(range(len(old), len(old) + len(new)))
        return torch.cat((old, new))
