"""What a model's forward pass knows besides its inputs: an immutable value, handed down explicitly."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import torch
from torch import Tensor

from diffulex_core.distributed import ALONE, Communicator
from diffulex_core.kernels.moe.contract import ExpertsKernel
from diffulex_core.kernels.moe.grouped import TorchExperts
from diffulex_core.protocols import AttentionBackend
from diffulex_core.types import AttentionBatch


@attrs.frozen(kw_only=True)
class BuildContext:
    """Where and how a family builds its network.

    Attributes:
        dtype: parameter and activation dtype.
        device: where parameters live; the meta device until weights are loaded.
        tp: the processes that share each layer, and which of them this is.
        experts_kernel: gives the kernel of the experts' matrix products; asked by networks that have experts.
    """

    dtype: torch.dtype
    device: torch.device
    tp: Communicator = ALONE
    experts_kernel: Callable[[], ExpertsKernel] = TorchExperts


@attrs.frozen(kw_only=True, eq=False)
class SoftInputs:
    """Embeddings that are fed for some rows of a forward, made from distributions instead of one token id.

    What they do is the network's: one with the capability `soft_inputs` reads them in place of the embeddings of these
    rows' ids (token merge), one with `self_conditioning` beside them (what the step before believed).

    Attributes:
        rows: [n] int64 distinct rows of the forward.
        embeddings: [n, hidden] their embeddings, in the activation dtype, scaled as the network scales its own.
    """

    rows: Tensor
    embeddings: Tensor

    def over(self, base: Tensor) -> Tensor:
        """[rows, hidden] -> the same, these rows replaced."""
        return base.index_copy(0, self.rows, self.embeddings)


@attrs.frozen(kw_only=True, eq=False)
class ForwardContext:
    """Pages, slots and visibility of one forward.

    Attributes:
        slots: [rows] int64 physical slot (page * page_size + offset) that each row's K/V go to; -1 stores nothing.
        key_pages, value_pages: one tensor [pages, page_size, kv_heads, head_dim] for each layer.
        batches: one `AttentionBatch` for each layer kind of the model.
        backend: computes attention.
        final: [rows] bool: the row's K/V will not change again (its position is below its span's `store_until`). The
            other rows are provisional. Networks that treat the two apart read it: DiffusionGemma runs final rows
            through its encoder and provisional ones through its decoder. None = all are final.
        soft: rows that are fed embeddings; None = every row is fed its token id alone.
    """

    slots: Tensor
    key_pages: tuple[Tensor, ...]
    value_pages: tuple[Tensor, ...]
    batches: tuple[AttentionBatch, ...]
    backend: AttentionBackend
    final: Tensor | None = None
    soft: SoftInputs | None = None

    def attend(self, layer: int, kind: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Store the rows' K/V of one layer, then attend.

        Args:
            layer: index of the layer among those that store K/V.
            kind: index of the layer's kind.
            query: [rows, heads, head_dim]; key, value: [rows, kv_heads, head_dim].
            scale: factor on the scores.
        Returns:
            [rows, heads, head_dim].
        """
        keep = self.slots >= 0
        key_pages, value_pages = self.key_pages[layer], self.value_pages[layer]
        slots = self.slots[keep]
        key_pages.view(-1, *key_pages.shape[2:])[slots] = key[keep].to(key_pages.dtype)
        value_pages.view(-1, *value_pages.shape[2:])[slots] = value[keep].to(value_pages.dtype)
        return self.backend.attend(query, key_pages, value_pages, self.batches[kind], scale)
