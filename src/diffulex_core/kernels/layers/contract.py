"""What kernels of the layers promise. Each stands for a few lines of torch, which layers run where there is none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

import attrs

from diffulex_core.kernels.case import Choosable

if TYPE_CHECKING:
    from torch import Tensor

    from diffulex_core.layers.moe.spec import Activation, MoESpec
    from diffulex_core.layers.rope import Rotation
    from diffulex_core.sampling.facts import Facts, Wanted


@attrs.define(kw_only=True, eq=False)  # torch.compile cannot follow the constructor of a frozen one
class HeadNorms:
    """Norms of queries and keys, head by head, before they are rotated.

    Attributes:
        query, key: [head_dim] weights.
        eps: added to the mean square.
        wide: scaled before they are rounded; see `LayerKernels.normed`.
        values: values are normalised as well, without a weight.
    """

    query: Tensor
    key: Tensor
    eps: float
    wide: bool = False
    values: bool = False


@runtime_checkable
class LayerKernels(Choosable, Protocol):
    """Kernels of a device; "auto" takes those of the highest priority above 0, which is torch's.

    Sums are taken in fp32 in an order that does not change from run to run. Results differ from those of
    `layers.twins.TorchLayers`, the same in plain torch, by roundings: what lies between two steps of one kernel need
    not be rounded. Tensors may have any strides. What a row holds, NaN included, changes no other row.
    """

    def normed(self, x: Tensor, weight: Tensor | None, eps: float, *, wide: bool = False) -> Tensor:
        """`weight * rounded(x / sqrt(mean(x²) + eps))`, as Llama does it.

        Args:
            x: [rows, width].
            weight: [width]; None = 1.
            eps: added to the mean square.
            wide: round once, after the weight, as Gemma does it.
        Returns:
            [rows, width].
        """
        ...

    def add_and_norm(
        self, x: Tensor, addend: Tensor, weight: Tensor, eps: float, *, wide: bool = False
    ) -> tuple[Tensor, Tensor]:
        """`x + addend`, rounded, and its norm; [rows, width] all."""
        ...

    def norm_and_add(self, x: Tensor, addend: Tensor, weight: Tensor, eps: float, *, wide: bool = False) -> Tensor:
        """`x` plus the norm of `addend`; [rows, width] all."""
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
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Norm and rotation of queries and keys, and keys and values into their slots.

        Args:
            query: [rows, heads, head_dim]; key, value: [rows, kv_heads, head_dim]; parts of one projection as a rule,
                and keys and values may be the same.
            norms: None = not normalised.
            rotation: of the rows.
            slots: [rows] int64 physical slot, -1 stores nothing.
            key_pages, value_pages: [pages, page_size, kv_heads, head_dim], contiguous; written.
        Returns:
            Queries and keys, rotated, in new tensors; and values as they are stored.
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
            wanted: what it says row by row, it says of all rows.
        """
        ...
