"""Broken subjects for the checks of `diffulex_core.testing.checks.cache_policy`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from diffulex_core.distributed import ALONE, Communicator
from diffulex_core.sparse.policy import SparseRefresh
from diffulex_core.testing.check import Check
from diffulex_core.testing.checks import cache_policy as checks
from diffulex_core.testing.subjects import CachePolicySubject
from diffulex_core.types import KVGeometry, Refresh
from tests.conformance.mutant import Mutant

Kept = Callable[[int, Tensor, Tensor, Refresh, Tensor], Tensor]


class Changed:
    """The engine's own policy with something done to what it keeps."""

    def __init__(self, change: Kept, geometry: Sequence[KVGeometry], tp: Communicator = ALONE) -> None:
        self._change, self._sound = change, SparseRefresh(geometry=geometry, tp=tp)

    def keep(self, layer: int, query: Tensor, key: Tensor, refresh: Refresh) -> Tensor:
        return self._change(layer, query, key, refresh, self._sound.keep(layer, query, key, refresh))


def one_too_many(layer: int, query: Tensor, key: Tensor, refresh: Refresh, kept: Tensor) -> Tensor:
    return torch.cat((kept, kept[:, -1:]), dim=1)


def whole_numbers_of_32_bits(layer: int, query: Tensor, key: Tensor, refresh: Refresh, kept: Tensor) -> Tensor:
    return kept.int()


def best_first(layer: int, query: Tensor, key: Tensor, refresh: Refresh, kept: Tensor) -> Tensor:
    return kept.flip(1)


def counts_outside_rows(layer: int, query: Tensor, key: Tensor, refresh: Refresh, kept: Tensor) -> Tensor:
    return torch.where(kept >= refresh.end, kept - (refresh.end - refresh.start), kept)


def keeps_one_twice(layer: int, query: Tensor, key: Tensor, refresh: Refresh, kept: Tensor) -> Tensor:
    return torch.cat((kept[:, :1], kept[:, :-1]), dim=1)


def heads_differ(layer: int, query: Tensor, key: Tensor, refresh: Refresh, kept: Tensor) -> Tensor:
    own = SparseRefresh(geometry=[KVGeometry(num_heads=query.shape[1], num_kv_heads=key.shape[1], head_dim=1)] * 9)
    return own.keep(layer, query, key, attrs.evolve(refresh, per_head=True))


def scales_queries(layer: int, query: Tensor, key: Tensor, refresh: Refresh, kept: Tensor) -> Tensor:
    query.mul_(0.5)
    return kept


def by_chance(layer: int, query: Tensor, key: Tensor, refresh: Refresh, kept: Tensor) -> Tensor:
    outside = [row for row in range(len(query)) if not refresh.start <= row < refresh.end]
    chosen = torch.randperm(len(outside))[: refresh.keep].sort().values
    return torch.tensor(outside)[chosen].expand(len(kept), -1)


class KeepsTheFirstPass:
    """Keeps in each layer what its first pass kept."""

    def __init__(self, geometry: Sequence[KVGeometry], tp: Communicator = ALONE) -> None:
        self._sound = SparseRefresh(geometry=geometry, tp=tp)
        self._kept: dict[int, Tensor] = {}

    def keep(self, layer: int, query: Tensor, key: Tensor, refresh: Refresh) -> Tensor:
        return self._kept.setdefault(layer, self._sound.keep(layer, query, key, refresh))


class LayersFollowTheFirst:
    """Keeps in every layer what was kept in the layer before."""

    def __init__(self, geometry: Sequence[KVGeometry], tp: Communicator = ALONE) -> None:
        self._sound = SparseRefresh(geometry=geometry, tp=tp)
        self._row: Tensor | None = None

    def keep(self, layer: int, query: Tensor, key: Tensor, refresh: Refresh) -> Tensor:
        kept = self._sound.keep(layer, query, key, refresh)
        if layer == 0 or self._row is None or self._row.shape[1] != kept.shape[1]:
            self._row = kept[:1]
        return self._row.expand(kept.shape)


def alone(geometry: Sequence[KVGeometry], tp: Communicator = ALONE) -> SparseRefresh:
    return SparseRefresh(geometry=[attrs.evolve(each, copies=1) for each in geometry], tp=ALONE)


def ignores_copies(geometry: Sequence[KVGeometry], tp: Communicator = ALONE) -> SparseRefresh:
    return SparseRefresh(geometry=[attrs.evolve(each, copies=1) for each in geometry], tp=tp)


def _mutant(check: Check[CachePolicySubject], what: str, factory: Callable[..., Any]) -> Mutant:
    return Mutant(name=what, check=check, subject=lambda: CachePolicySubject(name=what, factory=factory))


def _changed(check: Check[CachePolicySubject], what: str, change: Kept) -> Mutant:
    return _mutant(check, what, lambda *, geometry, tp=ALONE: Changed(change, geometry, tp))


MUTANTS: tuple[Mutant, ...] = (
    *(
        _changed(checks.check_cache_policy_keeps_what_is_asked, what, change)
        for what, change in (
            ("keeps one too many", one_too_many),
            ("returns int32", whole_numbers_of_32_bits),
            ("puts the best first", best_first),
            ("counts rows outside the region", counts_outside_rows),
            ("keeps a row twice", keeps_one_twice),
            ("heads differ unasked", heads_differ),
        )
    ),
    _changed(checks.check_cache_policy_depends_on_its_arguments_only, "scales queries in place", scales_queries),
    _changed(checks.check_cache_policy_depends_on_its_arguments_only, "keeps rows by chance", by_chance),
    _mutant(checks.check_cache_policy_depends_on_its_arguments_only, "keeps the first pass", KeepsTheFirstPass),
    _mutant(checks.check_cache_policy_depends_on_its_arguments_only, "layers follow the first", LayersFollowTheFirst),
    _mutant(checks.check_cache_policy_shares_agree, "every process decides alone", alone),
    _mutant(checks.check_cache_policy_shares_agree, "ignores that a KV head has copies", ignores_copies),
)
