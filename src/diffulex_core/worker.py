"""The device's side of an engine: one process's share of the network, its pages and the runner over both."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import torch

from diffulex_core.attention import AttentionCase, select_backend
from diffulex_core.config import EngineConfig
from diffulex_core.config.kernels import VLLM
from diffulex_core.context import BuildContext
from diffulex_core.devices import DTYPES, choose_dtype
from diffulex_core.distributed import ALONE, Communicator
from diffulex_core.errors import ConfigError
from diffulex_core.graphs import Forward, Graphs
from diffulex_core.graphs.choose import choose_forward
from diffulex_core.host import Host
from diffulex_core.kernels.case import KernelCase
from diffulex_core.kernels.layers import select_layer_kernels
from diffulex_core.kernels.moe import select_experts_kernel
from diffulex_core.kv_store import KVStore, page_bytes
from diffulex_core.layers.blocked import block_weights
from diffulex_core.pattern import AttentionPattern
from diffulex_core.profiling.ranges import TraceRanges
from diffulex_core.profiling.session import Recording
from diffulex_core.protocols import (
    AttentionBackend,
    CachePolicy,
    DiffusionModel,
    LeisurelyRunner,
    ModelRunner,
    Sampler,
    StagedRunner,
)
from diffulex_core.runner import EagerRunner
from diffulex_core.sampling import PackedSampler
from diffulex_core.sizing import Capacity, MemoryMeter, memory_meter, step_memory
from diffulex_core.types import HowRun, StepOutput, StepPlan
from diffulex_core.warmup import warm_up
from diffulex_core.weights import dummy_weights, load_weights
from diffulex_core.weights.lora import load_adapter

_log = logging.getLogger(__name__)


@attrs.frozen(kw_only=True, eq=False)
class Blueprint:
    """What every process of an engine builds its share from; it can be pickled.

    Attributes:
        config: the configuration.
        folder: the checkpoint's directory.
        checkpoint: parsed config.json.
        num_tokens: ids that the tokenizer knows.
        adapter: directory of the LoRA adapter; None without one.
    """

    config: EngineConfig
    folder: Path
    checkpoint: Mapping[str, Any]
    num_tokens: int
    adapter: Path | None = None


class Worker:
    """One process's share of an engine: loaded by the constructor, ready for plans once pages are allocated.

    Where one process holds the whole network, it is the `Executor` of an engine itself.
    """

    def __init__(
        self,
        blueprint: Blueprint,
        *,
        host: Host,
        device: torch.device,
        tp: Communicator = ALONE,
        sharers: int = 1,
        progress: bool = False,
        graphs: Graphs | None = None,
        meter: MemoryMeter | None = None,
    ) -> None:
        """
        Args:
            blueprint: what to build.
            host: the plugins.
            device: where the network, its pages and its activations live.
            tp: the processes that share each layer, and which of them this is.
            sharers: processes of the engine that share the device's memory.
            progress: show a progress bar while weights are loaded.
            graphs: captures steps of static shape; None = CUDA graphs where the device has them.
            meter: measures the device's memory; None = the device's own.
        Raises:
            ConfigError, CheckpointError, PluginError, UnknownNameError: see `Diffulex`.
        """
        config = blueprint.config
        self._graphs, self._meter = graphs, memory_meter(device) if meter is None else meter
        self._config, self._host, self._device, self._sharers = config, host, device, sharers
        self._dtype = choose_dtype(config.model.dtype, blueprint.checkpoint, device)
        network = build_network(blueprint, host=host, dtype=self._dtype, device=device, tp=tp)
        self._backend = choose_backend(config, network, host=host, dtype=self._dtype, device=device)
        load_network(network, blueprint, host=host, dtype=self._dtype, device=device, progress=progress)
        if blueprint.adapter is not None:
            adapt_network(network, blueprint, blueprint.adapter, host=host, dtype=self._dtype)
        block_weights(network)
        self._network: DiffusionModel | None = network
        self._tp = tp
        self._vocab_size = decidable_tokens(blueprint, network)
        self._runner: ModelRunner | None = None
        self._ran: Counter[HowRun] = Counter()

    @property
    def vocab_size(self) -> int:
        """Ids below this may be fed and decided."""
        return self._vocab_size

    @property
    def tp(self) -> Communicator:
        """The processes that share each layer."""
        return self._tp

    @property
    def network(self) -> DiffusionModel:
        """This process's share of the network."""
        assert self._network is not None, "the worker is closed"
        return self._network

    def capacity(self) -> Capacity:
        """What this process could store now that its weights are loaded, with room for the largest step.

        Raises:
            ConfigError: the largest step does not fit beside the weights.
        """
        geometry, page_size = self.network.kv_geometry, self._config.cache.page_size
        needed = step_memory(
            self._config, self._meter, lambda pages: self._make_runner(pages, None), captures=self._captures
        )
        free = self._meter.free() // self._sharers
        _log.info("%s bytes are free after loading, of which the largest step needs %s.", f"{free:,}", f"{needed:,}")
        return Capacity(page_bytes=page_bytes(geometry, page_size, self._kv_dtype), available=max(0, free - needed))

    def allocate(self, num_pages: int) -> None:
        """Make the pages and the runner, and warm up. Called once, before the first plan."""
        config, page_size = self._config, self._config.cache.page_size
        runner = self._make_runner(num_pages, self._forward())
        size = num_pages * page_bytes(self.network.kv_geometry, page_size, self._kv_dtype)
        _log.info("The KV cache has %d pages of %d positions, %s bytes.", num_pages, page_size, f"{size:,}")
        if not config.runtime.skip_warmup:
            warm_up(runner, rows=config.decoding.block_size, num_pages=num_pages, page_size=page_size)
        self._runner = runner

    def execute(self, plan: StepPlan) -> StepOutput:
        """See `ModelRunner`."""
        assert self._runner is not None, "no pages were allocated, or the worker is closed"
        output = self._runner.execute(plan)
        self._ran[output.how] += 1
        return output

    def at_leisure(self, work: Callable[[], None]) -> None:
        """See `LeisurelyRunner`; a runner that is none leaves the work to others."""
        if isinstance(self._runner, LeisurelyRunner):
            self._runner.at_leisure(work)

    def start_profile(self, recording: Recording) -> None:
        """Every stage is a range of this process's recordings from now on; whoever owns the process records them."""
        if isinstance(self._runner, StagedRunner):
            self._runner.clock.watch = TraceRanges(self._device)

    def stop_profile(self) -> tuple[Path, ...]:
        """Stages are no ranges any more. No file is written here."""
        if isinstance(self._runner, StagedRunner):
            self._runner.clock.watch = None
        return ()

    def close(self) -> None:
        """Free the device memory. Calling it again does nothing."""
        runner, self._runner, self._network = self._runner, None, None
        if runner is not None:
            _log.info("Steps by how the network ran: %s.", dict(self._ran))
            runner.close()

    @property
    def _captures(self) -> bool:
        return self._device.type == "cuda" or self._graphs is not None

    def _forward(self) -> Forward:
        return choose_forward(self.network, self._config, device=self._device, tp=self._tp, graphs=self._graphs)

    def _make_runner(self, num_pages: int, forward: Forward | None) -> ModelRunner:
        """A runner with pages of its own."""
        config, network = self._config, self.network
        kv_store = KVStore.allocate(
            network.kv_geometry, num_pages, config.cache.page_size, self._kv_dtype, self._device
        )
        mask = config.model.mask_token_id
        sampler: Sampler = component(self._host, "sampler", config.strategy.sampler, PackedSampler)(
            vocab_size=self._vocab_size,
            forbidden=frozenset() if mask is None else frozenset({mask}),
            tp=self._tp,
        )
        own: dict[str, Any] = {"forward": forward} if config.strategy.runner is None else {}
        runner: ModelRunner = component(self._host, "runner", config.strategy.runner, EagerRunner)(
            model=network,
            sampler=sampler,
            pattern=make_pattern(config, self._host),
            backend=self._backend,
            kv_store=kv_store,
            page_size=config.cache.page_size,
            device=self._device,
            max_logits_tokens=config.schedule.max_logits_tokens,
            cache_policy=self._cache_policy(network),
            **own,
        )
        return runner

    def _cache_policy(self, network: DiffusionModel) -> CachePolicy:
        make = component(self._host, "cache_policy", self._config.cache.cache_policy, None)
        policy: CachePolicy = make(geometry=network.kv_geometry, tp=self._tp)
        return policy

    @property
    def _kv_dtype(self) -> torch.dtype:
        chosen = self._config.cache.kv_cache_dtype
        return self._dtype if chosen == "auto" else DTYPES[chosen]


def in_process(
    blueprint: Blueprint,
    *,
    host: Host,
    devices: Sequence[torch.device],
    replica: int,
    sharers: int,
    progress: bool,
) -> Worker:
    """The executor of an engine that runs in its own process; for the arguments see `Executor`.

    Raises:
        ConfigError: several processes are wanted. Otherwise as the constructor of `Worker`.
    """
    if len(devices) != 1:
        advice = "Use executor='auto' or 'spawned', or tensor_parallel_size=1."
        raise ConfigError(
            [f"executor='in_process' is one process, but tensor_parallel_size is {len(devices)}. {advice}"]
        )
    return Worker(blueprint, host=host, device=devices[0], sharers=sharers, progress=progress)


def build_network(
    blueprint: Blueprint, *, host: Host, dtype: torch.dtype, device: torch.device, tp: Communicator = ALONE
) -> DiffusionModel:
    """One process's share of the family's network on the meta device, without weights, to be run on `device`.

    Raises:
        ConfigError: the processes cannot share it evenly.
        IncompatibleError: the kernels named for its layers cannot serve, or it has experts and theirs cannot.
    """
    family = blueprint.config.family
    build = host.load(family.build, provenance=host.models.entry(family.name).provenance)
    case = KernelCase(device_type=device.type, dtype=dtype)
    barred = () if blueprint.config.runtime.enable_vllm_layers else VLLM
    experts_kernel = partial(select_experts_kernel, blueprint.config.runtime.moe_gemm_impl, host, case, barred=barred)
    kernels = select_layer_kernels(
        blueprint.config.runtime.layer_impl, host, KernelCase(device_type=device.type, dtype=dtype), barred=barred
    )
    ctx = BuildContext(dtype=dtype, device=torch.device("meta"), tp=tp, experts_kernel=experts_kernel, kernels=kernels)
    network: DiffusionModel = build(blueprint.checkpoint, ctx)
    return network


def load_network(
    network: DiffusionModel,
    blueprint: Blueprint,
    *,
    host: Host,
    dtype: torch.dtype,
    device: torch.device,
    progress: bool,
) -> None:
    """Fill a network from the checkpoint, or with random numbers; afterwards it stands on `device`.

    Raises:
        CheckpointError: tensors are missing, unexpected, of the wrong shape or damaged.
    """
    family, options = blueprint.config.family, blueprint.config.model
    if options.load_format == "dummy":
        dummy_weights(network, device=device)
        return
    provenance = host.models.entry(family.name).provenance
    load_weights(
        network,
        host.load(family.weights, provenance=provenance),
        blueprint.folder,
        blueprint.checkpoint,
        dtype=dtype,
        device=device,
        progress=progress,
        check=options.check_weights,
        owner=f"the model family '{family.name}' ({provenance.release})",
    )


def adapt_network(
    network: DiffusionModel, blueprint: Blueprint, adapter: Path, *, host: Host, dtype: torch.dtype
) -> None:
    """Bring a LoRA adapter into a loaded network.

    Raises:
        CheckpointError: some of it does not fit the model; nothing was changed.
    """
    family = blueprint.config.family
    provenance = host.models.entry(family.name).provenance
    load_adapter(
        network,
        host.load(family.weights, provenance=provenance),
        blueprint.folder,
        blueprint.checkpoint,
        adapter,
        merge_weights=blueprint.config.lora.pre_merge_lora,
        dtype=dtype,
        owner=f"the model family '{family.name}' ({provenance.release})",
    )


def choose_backend(
    config: EngineConfig, network: DiffusionModel, *, host: Host, dtype: torch.dtype, device: torch.device
) -> AttentionBackend:
    """The attention backend that `attn_impl` means for this network.

    Raises:
        IncompatibleError: the one that was named cannot serve it, or none can.
    """
    cases = [
        AttentionCase(
            device_type=device.type,
            dtype=dtype,
            head_dim=geometry.head_dim,
            num_heads=geometry.num_heads,
            num_kv_heads=geometry.num_kv_heads,
            page_size=config.cache.page_size,
            block_size=config.decoding.block_size,
            windows=tuple(network.windows),
        )
        for geometry in dict.fromkeys(network.kv_geometry)
    ]
    return select_backend(config.attention.attn_impl, host, *cases)


def decidable_tokens(blueprint: Blueprint, network: DiffusionModel) -> int:
    """Ids below this are tokens; the rest of the head is padding."""
    return min(blueprint.num_tokens, network.vocab_size)


def make_pattern(config: EngineConfig, host: Host) -> AttentionPattern:
    """The strategy's attention pattern."""
    strategy = host.strategies.entry(config.strategy.name)
    make = host.load(strategy.descriptor.pattern, provenance=strategy.provenance)
    buffer_size = config.decoding.buffer_size if strategy.descriptor.sub_blocks else 1
    pattern: AttentionPattern = make(config.decoding.block_size * buffer_size)
    return pattern


def component(host: Host, kind: str, name: str | None, default: Any) -> Any:
    """The factory of a registered component, or core's own when the strategy names none."""
    if name is None:
        return default
    entry = host.components[kind].entry(name)
    return host.load(entry.descriptor.factory, provenance=entry.provenance)
