"""What checks are run on: values that say how to make the thing under test, and what stands around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import attrs
import torch

from diffulex_core.attention.case import AttentionCase
from diffulex_core.context import BuildContext
from diffulex_core.distributed import ALONE, Communicator
from diffulex_core.host import Host, PluginRecord
from diffulex_core.kernels.layers import LayerKernels
from diffulex_core.kernels.moe import ExpertsKernel
from diffulex_core.pattern import AttentionPattern
from diffulex_core.plugin import DecodingStrategy, ModelFamily
from diffulex_core.protocols import (
    AttentionBackend,
    CachePolicy,
    DiffusionModel,
    Executor,
    KVCacheManager,
    ModelRunner,
    ModelSource,
    Sampler,
    Scheduler,
    WeightResolver,
)
from diffulex_core.registry import Entry, Provenance
from diffulex_core.worker import Blueprint

CPU = torch.device("cpu")


class Subject(Protocol):
    """Anything that checks are run on."""

    @property
    def label(self) -> str:
        """How reports call it, such as "family mymodel"."""
        ...


@attrs.frozen(kw_only=True, eq=False)
class PluginSubject:
    """A plugin as a whole.

    Attributes:
        host: a discovery that the plugin takes part in, or was quarantined by.
        record: what became of it.
    """

    host: Host = attrs.field(repr=False)
    record: PluginRecord

    @property
    def label(self) -> str:
        return f"plugin {self.record.provenance.plugin}"


@attrs.frozen(kw_only=True, eq=False)
class FamilySubject:
    """A model family with a small config.json.

    Attributes:
        host: the plugins.
        entry: the descriptor and the plugin that registers it.
        config: the family's `tiny` config.json.
    """

    host: Host = attrs.field(repr=False)
    entry: Entry[ModelFamily]
    config: Mapping[str, Any] = attrs.field(repr=False)

    @property
    def label(self) -> str:
        return f"family {self.family.name}"

    @property
    def family(self) -> ModelFamily:
        return self.entry.descriptor

    @property
    def provenance(self) -> Provenance:
        return self.entry.provenance

    def load(self, reference: str) -> Any:
        """The code that the descriptor names."""
        return self.host.load(reference, provenance=self.provenance)

    def build(
        self, *, tp: Communicator = ALONE, dtype: torch.dtype = torch.float32, device: torch.device = CPU
    ) -> DiffusionModel:
        """One process's share of a fresh network with the parameters that its constructor gives it."""
        network: DiffusionModel = self.load(self.family.build)(
            dict(self.config), BuildContext(dtype=dtype, device=device, tp=tp)
        )
        return network

    @property
    def resolver(self) -> WeightResolver:
        """What assigns checkpoint tensors to parameters."""
        resolver: WeightResolver = self.load(self.family.weights)
        return resolver


@attrs.frozen(kw_only=True, eq=False)
class StrategySubject:
    """A decoding strategy in one sampling mode, with a family that fits it.

    Attributes:
        host: the plugins.
        entry: the descriptor and the plugin that registers it.
        mode: value of `sampling_mode`; "naive" is the strategy as it is.
        partner: a family that provides what the mode requires.
    """

    host: Host = attrs.field(repr=False)
    entry: Entry[DecodingStrategy]
    mode: str = "naive"
    partner: FamilySubject = attrs.field(repr=False)

    @property
    def label(self) -> str:
        name = f"strategy {self.entry.descriptor.name}"
        return name if self.mode == "naive" else f"{name} in mode {self.mode}"

    @property
    def strategy(self) -> DecodingStrategy:
        """The recipe in its mode."""
        return self.entry.descriptor.in_mode(self.mode)

    def load(self, reference: str) -> Any:
        """The code that the descriptor names."""
        return self.host.load(reference, provenance=self.entry.provenance)


@attrs.frozen(kw_only=True, eq=False)
class EngineSubject:
    """A family and a strategy together, as an engine runs them.

    Attributes:
        host: the plugins.
        family: the family.
        strategy: the strategy, in one of its modes.
    """

    host: Host = attrs.field(repr=False)
    family: FamilySubject
    strategy: StrategySubject

    @property
    def label(self) -> str:
        return f"{self.family.label} with {self.strategy.label}"


class MakeKVCache(Protocol):
    """Factory of a KV cache, as a component of that kind is called."""

    def __call__(
        self, *, num_pages: int, page_size: int, pattern: AttentionPattern, prefix_caching: bool
    ) -> KVCacheManager: ...


class MakeScheduler(Protocol):
    """Factory of a scheduler, as a component of that kind is called."""

    def __call__(
        self,
        kv_cache: KVCacheManager,
        /,
        *,
        max_num_reqs: int,
        max_num_batched_tokens: int,
        block_size: int,
        max_refresh_tokens: int | None = None,
    ) -> Scheduler: ...


class MakeSampler(Protocol):
    """Factory of a sampler, as a component of that kind is called."""

    def __call__(self, *, vocab_size: int, forbidden: frozenset[int], tp: Communicator = ALONE) -> Sampler: ...


class MakeExecutor(Protocol):
    """Factory of an executor, as a component of that kind is called."""

    def __call__(
        self,
        blueprint: Blueprint,
        /,
        *,
        host: Host,
        devices: Sequence[torch.device],
        replica: int,
        sharers: int,
        progress: bool,
    ) -> Executor: ...


@attrs.frozen(kw_only=True, eq=False)
class _Made:
    """What a factory makes.

    Attributes:
        name: for reports.
    """

    kind: ClassVar[str]
    name: str

    @property
    def label(self) -> str:
        return f"{self.kind} {self.name}"


@attrs.frozen(kw_only=True, eq=False)
class KVCacheSubject(_Made):
    """A KV cache.

    Attributes:
        factory: makes one.
    """

    kind: ClassVar[str] = "kv_cache"
    factory: MakeKVCache


@attrs.frozen(kw_only=True, eq=False)
class SchedulerSubject(_Made):
    """A scheduler.

    Attributes:
        factory: makes one.
        kv_cache: makes the cache that it works with.
    """

    kind: ClassVar[str] = "scheduler"
    factory: MakeScheduler
    kv_cache: MakeKVCache


@attrs.frozen(kw_only=True, eq=False)
class SamplerSubject(_Made):
    """A sampler.

    Attributes:
        factory: makes one.
    """

    kind: ClassVar[str] = "sampler"
    factory: MakeSampler


@attrs.frozen(kw_only=True, eq=False)
class CachePolicySubject(_Made):
    """A policy of the sparse cache.

    Attributes:
        factory: makes one, of `geometry` (one entry for each layer) and `tp`.
    """

    kind: ClassVar[str] = "cache_policy"
    factory: Callable[..., CachePolicy]


@attrs.frozen(kw_only=True, eq=False)
class RunnerSubject(_Made):
    """A runner.

    Attributes:
        factory: makes one, of the keywords that `EagerRunner` takes.
    """

    kind: ClassVar[str] = "runner"
    factory: Callable[..., ModelRunner]


@attrs.frozen(kw_only=True, eq=False)
class ExecutorSubject(_Made):
    """An executor.

    Attributes:
        factory: makes one.
    """

    kind: ClassVar[str] = "executor"
    factory: MakeExecutor


@attrs.frozen(kw_only=True, eq=False)
class ModelSourceSubject(_Made):
    """A source of models.

    Attributes:
        factory: makes one.
        known: names that it resolves.
    """

    kind: ClassVar[str] = "model_source"
    factory: Callable[[], ModelSource]
    known: tuple[str, ...] = ()


@attrs.frozen(kw_only=True, eq=False)
class ExpertsSubject(_Made):
    """A kernel for experts.

    Attributes:
        factory: makes one.
    """

    kind: ClassVar[str] = "kernel"
    factory: Callable[[], ExpertsKernel]


@attrs.frozen(kw_only=True, eq=False)
class LayerKernelsSubject(_Made):
    """Kernels of the layers.

    Attributes:
        factory: makes them.
    """

    kind: ClassVar[str] = "layer_kernels"
    factory: Callable[[], LayerKernels]


@attrs.frozen(kw_only=True, eq=False)
class AttentionSubject(_Made):
    """An attention backend.

    Attributes:
        factory: makes one.
        probe: the reasons it cannot serve a case.
    """

    kind: ClassVar[str] = "attention"
    factory: Callable[[], AttentionBackend]
    probe: Callable[[AttentionCase], list[str]]
