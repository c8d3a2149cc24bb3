"""What a model's forward pass knows besides its inputs: an immutable value, handed down explicitly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import attrs
import numpy as np
import torch
from torch import Tensor

from diffulex_core.distributed import ALONE, Communicator
from diffulex_core.kernels.layers.contract import HeadNorms, LayerKernels
from diffulex_core.kernels.moe.contract import ExpertsKernel
from diffulex_core.kernels.moe.grouped import TorchExperts
from diffulex_core.layers.rope import Rotation
from diffulex_core.protocols import AttentionBackend, CachePolicy
from diffulex_core.types import AttentionBatch, Refresh

Places = Tensor | slice
"""Rows, or slots: ids, or some that follow one another."""
_MOST_SLICES = 64
"""Beyond it one copy by index costs less than so many by slice."""


@attrs.frozen(kw_only=True)
class BuildContext:
    """Where and how a family builds its network.

    Attributes:
        dtype: parameter and activation dtype.
        device: where parameters live; the meta device until weights are loaded.
        tp: the processes that share each layer, and which of them this is.
        experts_kernel: gives the kernel of the experts' matrix products; asked by networks that have experts.
        kernels: of the layers' other operations; None = the layers' own torch code.
    """

    dtype: torch.dtype
    device: torch.device
    tp: Communicator = ALONE
    experts_kernel: Callable[[], ExpertsKernel] = TorchExperts
    kernels: LayerKernels | None = None


@attrs.frozen(kw_only=True, eq=False)
class SoftInputs:
    """Embeddings that are fed for some rows of a forward, made from distributions instead of one token id.

    What they do is the network's: one with the capability `soft_inputs` reads them in place of the embeddings of these
    rows' ids (token merge), one with `self_conditioning` beside them (what the step before believed).

    Attributes:
        rows: [n] int64 distinct rows of the forward.
        embeddings: [n, hidden] their embeddings, in the activation dtype, scaled as the network scales its own.
        fed: [rows of the forward, 1] bool where `rows` are all of them: the embeddings count where it is true. None =
            all count.
    """

    rows: Tensor
    embeddings: Tensor
    fed: Tensor | None = None

    def over(self, base: Tensor) -> Tensor:
        """[rows, hidden] -> the same, these rows replaced."""
        if self.fed is not None:
            return torch.where(self.fed, self.embeddings, base)
        return base.index_copy(0, self.rows, self.embeddings)


@attrs.frozen(kw_only=True, eq=False)
class Refreshing:
    """A sequence of the forward of which some K/V are kept once a layer has attended.

    Attributes:
        start, end: its rows.
        slots: [keep] int64 physical slots of the kept K/V; they hold K/V of the same sequence until then.
        refresh: what is kept.
    """

    start: int
    end: int
    slots: Tensor
    refresh: Refresh


def stored_rows(slots: Tensor) -> list[tuple[Places, Places]]:
    """The rows that store something, and where: together they say what `slots` says.

    Rows whose slots follow one another are a slice each, if there are few of them: copying a slice is much faster than
    copying by index.

    Args:
        slots: [rows] as in `ForwardContext`, on the CPU.
    """
    rows = np.flatnonzero(slots.numpy() >= 0)
    there = slots.numpy()[rows]
    starts = np.flatnonzero((np.diff(rows, prepend=-2) != 1) | (np.diff(there, prepend=-2) != 1))
    if len(starts) > _MOST_SLICES:
        return [(torch.from_numpy(rows), torch.from_numpy(there))]
    sizes = np.diff(starts, append=len(rows)).tolist()
    return [
        (slice(row, row + size), slice(slot, slot + size))
        for row, slot, size in zip(rows[starts].tolist(), there[starts].tolist(), sizes, strict=True)
    ]


@attrs.frozen(kw_only=True, eq=False)
class RowStorage:
    """Where rows go, in tensors of one entry for each row, so that nothing depends on how many are stored.

    A row that is not stored repeats one that is, and where none is, slot 0 is given what it holds.

    Attributes:
        rows: [rows] int64 the row that is stored instead of each.
        slots: [rows] int64 where to.
        some: bool, whether any row is stored.
    """

    rows: Tensor
    slots: Tensor
    some: Tensor

    @classmethod
    def at(cls, slots: Tensor) -> RowStorage:
        """For `slots` as in `ForwardContext`."""
        stored = slots >= 0
        rows = torch.arange(len(slots), device=slots.device).where(stored, stored.int().argmax())
        return cls(rows=rows, slots=slots[rows].clamp(min=0), some=stored.any())

    def put(self, flat: Tensor, fresh: Tensor) -> None:
        """Store rows of `fresh` [rows, ...] in `flat` [slots, ...]."""
        flat[self.slots] = torch.where(self.some, fresh[self.rows].to(flat.dtype), flat[self.slots])


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
        refreshes: sequences of which some K/V are kept.
        cache_policy: chooses them; None where nothing is ever refreshed.
    """

    slots: Tensor
    key_pages: tuple[Tensor, ...]
    value_pages: tuple[Tensor, ...]
    batches: tuple[AttentionBatch, ...]
    backend: AttentionBackend
    final: Tensor | None = None
    soft: SoftInputs | None = None
    refreshes: tuple[Refreshing, ...] = ()
    cache_policy: CachePolicy | None = None

    @cached_property
    def _stored(self) -> Sequence[tuple[Places, Places]]:
        """Which rows go to which slots: found once, and the same for all layers."""
        return stored_rows(self.slots)

    @cached_property
    def _storage(self) -> RowStorage:
        """The same on a device, where nobody waits for a count."""
        return RowStorage.at(self.slots)

    def attend(self, layer: int, kind: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Store the rows' K/V of one layer, attend, and pack what is kept of sequences that are refreshed.

        Args:
            layer: index of the layer among those that store K/V.
            kind: index of the layer's kind.
            query: [rows, heads, head_dim]; key, value: [rows, kv_heads, head_dim].
            scale: factor on the scores.
        Returns:
            [rows, heads, head_dim].
        """
        key_pages, value_pages = self.key_pages[layer], self.value_pages[layer]
        for pages, fresh in ((key_pages, key), (value_pages, value)):
            flat = pages.view(-1, *pages.shape[2:])
            if self.slots.device.type == "cpu":
                for rows, slots in self._stored:
                    flat[slots] = fresh[rows].to(pages.dtype)
            else:
                self._storage.put(flat, fresh)
        return self._attend(layer, kind, query, key, value, scale)

    def turn_and_attend(
        self,
        kernels: LayerKernels,
        layer: int,
        kind: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        norms: HeadNorms | None,
        rotation: Rotation,
        scale: float,
    ) -> Tensor:
        """As `attend`, for queries and keys as they are projected: a kernel normalises, rotates and stores them."""
        query, key, value = kernels.turn_and_store(
            query,
            key,
            value,
            norms=norms,
            rotation=rotation,
            slots=self.slots,
            key_pages=self.key_pages[layer],
            value_pages=self.value_pages[layer],
        )
        return self._attend(layer, kind, query, key, value, scale)

    def _attend(self, layer: int, kind: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Attention over what is stored."""
        key_pages, value_pages = self.key_pages[layer], self.value_pages[layer]
        seen = self.backend.attend(query, key_pages, value_pages, self.batches[kind], scale)
        for each in self.refreshes:
            self._keep(each, layer, query, key, value)
        return seen

    def _keep(self, each: Refreshing, layer: int, query: Tensor, key: Tensor, value: Tensor) -> None:
        """Put the K/V that the policy keeps into the sequence's first slots, for every KV head its own."""
        assert self.cache_policy is not None, "a runner that is given refreshes needs a cache policy"
        rows = slice(each.start, each.end)
        kept = self.cache_policy.keep(layer, query[rows], key[rows], each.refresh)  # [kv_heads, keep]
        at = kept.T[..., None].expand(-1, -1, key.shape[-1])
        for pages, fresh in ((self.key_pages[layer], key), (self.value_pages[layer], value)):
            pages.view(-1, *pages.shape[2:])[each.slots] = fresh[rows].gather(0, at).to(pages.dtype)
