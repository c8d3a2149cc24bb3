"""The network of a model family, the attention below it, and which of its K/V are kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from diffulex_core.types import AttentionBatch, KVGeometry, Refresh

if TYPE_CHECKING:
    from torch import Tensor

    from diffulex_core.context import ForwardContext


@runtime_checkable
class AttentionBackend(Protocol):
    """Computes attention over paged keys and values by interval."""

    def attend(
        self, query: Tensor, key_pages: Tensor, value_pages: Tensor, batch: AttentionBatch, scale: float
    ) -> Tensor:
        """Attention output of every row.

        Args:
            query: [rows, heads, head_dim].
            key_pages, value_pages: [pages, page_size, kv_heads, head_dim]; in-flight rows are already written.
                Query head `h` reads KV head `h // (heads // kv_heads)`.
            batch: each row's page table and key interval.
            scale: factor on the scores.
        Returns:
            [rows, heads, head_dim] in the query's dtype; rows with an empty interval are zero.
        """
        ...


@runtime_checkable
class CachePolicy(Protocol):
    """Says which K/V of a full pass are kept for the passes after it (the sparse cache).

    Where several processes share a layer, each has its own heads; all call it for the same passes in the same order.
    """

    def keep(self, layer: int, query: Tensor, key: Tensor, refresh: Refresh) -> Tensor:
        """Which rows of one sequence's pass are kept in one layer.

        Args:
            layer: index of the layer among those that store K/V.
            query: [rows, heads, head_dim] of the whole sequence, rotated.
            key: [rows, kv_heads, head_dim], rotated. Query head `h` reads KV head `h // (heads // kv_heads)`.
            refresh: the region, which is not chosen from, and how many rows of the others are wanted.
        Returns:
            [kv_heads, refresh.keep] int64 rows, ascending for each KV head.
        """
        ...


@runtime_checkable
class DiffusionModel(Protocol):
    """A model family's network (a torch.nn.Module). Holds weights, no decoding state."""

    @property
    def kv_geometry(self) -> Sequence[KVGeometry]:
        """The heads that this process holds, one entry for each layer that stores keys and values."""
        ...

    @property
    def vocab_size(self) -> int:
        """Rows of the head over all processes; ids at or above the tokenizer's size are padding."""
        ...

    @property
    def windows(self) -> Sequence[int | None]:
        """The layer kinds: sliding-window width in tokens, or None for full attention, of each kind."""
        ...

    def __call__(self, input_ids: Tensor, positions: Tensor, ctx: ForwardContext) -> Tensor:
        """[rows] ids and positions -> [rows, hidden] final hidden states (after the last norm)."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """[rows, hidden] -> [rows, columns]: the logits of the ids that this process holds.

        A single process holds all of them. Of several, rank `r` holds the ids from `r * columns` on, where `columns` is
        `vocab_size / processes` rounded up; columns past `vocab_size` mean nothing.
        """
        ...


@runtime_checkable
class SelfConditioned(Protocol):
    """What a network with the capability `self_conditioning` offers besides `DiffusionModel`.

    A step's logits become embeddings here; the next forward of the same rows takes them as `ForwardContext.soft`.
    Between the two they belong to the request. Rows that are given none, as in a canvas's first step, count as zero.
    """

    def soft_embeddings(self, logits: Tensor) -> Tensor:
        """The embedding that each row expects: `softmax(logits) @ embedding`, scaled as embedded tokens are.

        Args:
            logits: [rows, columns] as `DiffusionModel.logits` returns them, after the sampler's temperature.
        Returns:
            [rows, hidden] in the activation dtype, the same on every process.
        """
        ...


@runtime_checkable
class SoftInputNetwork(Protocol):
    """What a network with the capability `soft_inputs` offers besides `DiffusionModel`."""

    def blend(self, ids: Tensor, weights: Tensor, match_norm: Tensor) -> Tensor:
        """Weighted sums of token embeddings, to be fed as `ForwardContext.soft`.

        Args:
            ids: [rows, k] int64.
            weights: [rows, k] float32.
            match_norm: [rows] bool: scale the sum to the weighted sum of the embeddings' norms.
        Returns:
            [rows, hidden] in the activation dtype, summed in float32, the same on every process.
        """
        ...
