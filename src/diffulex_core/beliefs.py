"""What a step believed of a request's rows: embeddings that its next step is fed, kept on the device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


class Beliefs:
    """One tensor [rows, hidden] for each of some requests, by request id. Never copied to the host."""

    def __init__(self) -> None:
        self._of: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._of)

    def keep(self, owners: Sequence[tuple[int, int]], embeddings: Tensor) -> None:
        """Remember [n, hidden] rows, in place of what their requests had.

        Args:
            owners: requests and their numbers of rows, which add up to n.
            embeddings: the rows of all of them, in that order.
        """
        parts = embeddings.split([count for _, count in owners])
        for (request, _), part in zip(owners, parts, strict=True):
            self._of[request] = part.clone() if len(owners) > 1 else part

    def take(self, requests: Sequence[int]) -> Tensor:
        """[n, hidden] the rows of some requests, one after the other. KeyError for one that has none."""
        return torch.cat([self._of[request] for request in requests])

    def drop(self, requests: Iterable[int]) -> None:
        """Forget the rows of these requests; those that have none are left out."""
        for request in requests:
            self._of.pop(request, None)
