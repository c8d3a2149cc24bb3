"""What kernels of the layers promise. Each stands for a few lines of torch, which layers run where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import attrs

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from diffulex_core.layers.moe.spec import Activation, MoESpec
    from diffulex_core.layers.rope import Rotation
    from diffulex_core.sampling.facts import Facts, Wanted


@attrs.frozen(kw_only=True)
class LayerCase:
    """Where the layers of one engine run; implementations answer with the reasons they cannot serve it.

    Attributes:
        device_type: "cpu", "cuda" ...
        dtype: of weights and activations.
    """

    device_type: str
    dtype: torch.dtype


@attrs.frozen(kw_only=True, eq=False)
class HeadNorms:
    """Norms of queries and keys, head by head, before they are rotated.

    Attributes:
        query, key: [head_dim] weights.
        eps: added to the mean square.
    """

    query: Tensor
    key: Tensor
    eps: float


@runtime_checkable
class LayerKernels(Protocol):
    """Kernels of a device. Sums are taken in fp32 in an order that does not change from run to run.

    Results differ from the torch code's by roundings: what lies between two steps of one kernel is not rounded.
    """

    def reasons(self, case: LayerCase) -> Sequence[str]:
        """Why the implementation cannot serve; empty when it can."""
        ...

    def priority(self, case: LayerCase) -> int:
        """How well it serves a case that it can serve: "auto" takes the highest above 0, which is torch's."""
        ...

    def normed(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """`layers.norm.RMSNorm`: [rows, width] and [width] -> [rows, width]."""
        ...

    def add_and_norm(self, x: Tensor, addend: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """`x + addend`, rounded, and its norm; [rows, width] all."""
        ...

    def gated(self, packed: Tensor, activation: Activation) -> Tensor:
        """`act(gate) * up`: [rows, 2 * size], the gate's columns first -> [rows, size]."""
        ...

    def turn_and_store(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        norms: HeadNorms | None,
        rotation: Rotation,
        slots: Tensor,
        key_pages: Tensor,
        value_pages: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Norm and rotation of queries and keys, and keys and values into their slots.

        Args:
            query: [rows, heads, head_dim]; key, value: [rows, kv_heads, head_dim]; parts of one projection as a rule.
            norms: None = not normalised.
            rotation: of the rows.
            slots: [rows] int64 physical slot, -1 stores nothing.
            key_pages, value_pages: [pages, page_size, kv_heads, head_dim], written.
        Returns:
            Queries and keys, rotated, in new tensors.
        """
        ...

    def route(self, logits: Tensor, bias: Tensor | None, spec: MoESpec) -> tuple[Tensor, Tensor]:
        """`layers.moe.routing.choose`."""
        ...

    def blend(self, table: Tensor, ids: Tensor, weights: Tensor, match_norm: Tensor) -> Tensor:
        """`SoftInputNetwork.blend` over an embedding `table` [vocab, hidden] that one process holds."""
        ...

    def select(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, wanted: Wanted) -> Facts:
        """`sampling.facts.facts_of(hidden @ weight.T + bias, wanted)`, without these logits in memory.

        Logits are rounded to the dtype of `hidden` before anything is done with them, as torch gives them.

        Args:
            hidden: [rows, hidden]; weight: [columns, hidden]; bias: [columns] or None.
        """
        ...
