"""How tokens travel between routing and experts.

A dispatcher stands between the two so that experts may live in other processes: it hands each process the rows that its
experts compute, and brings the results back. All processes of a group call both methods in the same order, also those
without a single row to send.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import attrs
from torch import Tensor

from diffulex_core.distributed.ranges import Range


@attrs.define(kw_only=True, eq=False)  # torch.compile cannot follow the constructor of a frozen one
class Dispatched:
    """Rows for the experts of this process. A dispatcher returns a subclass when `combine` needs to know more.

    Attributes:
        x: [received, hidden].
        ids: [received, slots] int32 index among the experts held here; -1 = nothing to compute for that slot.
        weights: [received, slots] float32 factor on each expert's output.
    """

    x: Tensor
    ids: Tensor
    weights: Tensor


@runtime_checkable
class Dispatcher(Protocol):
    """Brings rows to experts and results back."""

    def dispatch(self, x: Tensor, ids: Tensor, weights: Tensor) -> Dispatched:
        """The rows that the experts of this process compute.

        Args:
            x: [rows, hidden], the same on every process of the group; rows may be 0.
            ids: [rows, k] int32 index among all experts; -1 = no expert.
            weights: [rows, k] float32.
        """
        ...

    def combine(self, outputs: Tensor, dispatched: Dispatched) -> Tensor:
        """This process's addend of the routed result; the sum over the group is the whole.

        Args:
            outputs: [received, hidden] weighted sum over the slots of each dispatched row.
        Returns:
            [rows, hidden], zero where this process contributes nothing.
        """
        ...


@attrs.frozen
class LocalDispatcher:
    """Every process sees all rows and computes the slots of the experts that it holds ("standard").

    Attributes:
        held: the experts of this process.
    """

    held: Range

    def dispatch(self, x: Tensor, ids: Tensor, weights: Tensor) -> Dispatched:
        """See `Dispatcher`; nothing is sent."""
        if self.held.length == self.held.size:
            return Dispatched(x=x, ids=ids, weights=weights)
        local = ids - self.held.start
        elsewhere = (local < 0) | (local >= self.held.length)
        return Dispatched(x=x, ids=local.masked_fill(elsewhere, -1), weights=weights)

    def combine(self, outputs: Tensor, dispatched: Dispatched) -> Tensor:
        """See `Dispatcher`; nothing comes back."""
        return outputs
