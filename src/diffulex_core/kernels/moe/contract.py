"""What an implementation of the experts' matrix products promises."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from diffulex_core.kernels.case import Choosable
from diffulex_core.layers.moe.spec import Activation

if TYPE_CHECKING:
    from torch import Tensor


@runtime_checkable
class ExpertsKernel(Choosable, Protocol):
    """Gated MLPs, each over the rows that chose it."""

    def __call__(
        self, x: Tensor, ids: Tensor, weights: Tensor, w13: Tensor, w2: Tensor, activation: Activation
    ) -> Tensor:
        """`out[t] = sum_j weights[t, j] * w2[e] (act(gate[e] x[t]) * (up[e] x[t]))` with `e = ids[t, j]`.

        A slot with id -1 or weight 0 contributes nothing, whatever its expert would compute. Sums over the slots are
        taken in fp32 in the order of the slots, so that the same inputs give the same bits in every run.

        Args:
            x: [rows, hidden]; rows may be 0.
            ids: [rows, slots] int32, -1 or below the number of experts.
            weights: [rows, slots] float32.
            w13: [experts, 2 * size, hidden], the gate's rows first, then the up projection's.
            w2: [experts, hidden, size].
            activation: of the gate.
        Returns:
            [rows, hidden] in the dtype of `x`.
        """
        ...


def live_ids(ids: Tensor, weights: Tensor) -> Tensor:
    """The ids, -1 where the weight is zero."""
    return ids.masked_fill(weights == 0, -1)
