"""From a configuration to the parts of an engine: the one place that turns names into objects."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch

from diffulex_core.attention import AttentionCase, select_backend
from diffulex_core.blocks import BlockRequest
from diffulex_core.config import EngineConfig
from diffulex_core.config.load import LoadedConfig
from diffulex_core.context import BuildContext
from diffulex_core.errors import ConfigError
from diffulex_core.host import Host
from diffulex_core.kv_cache import PagedKVCache
from diffulex_core.kv_store import KVStore, page_bytes
from diffulex_core.observers import Observer, combine
from diffulex_core.pattern import AttentionPattern
from diffulex_core.plugin import ComponentKind, DecodingStrategy
from diffulex_core.protocols import (
    AutoNFE,
    DiffusionModel,
    KVCacheManager,
    ModelRunner,
    ReqContext,
    ReqFactory,
    Sampler,
    Scheduler,
)
from diffulex_core.registry import Entry
from diffulex_core.runner import EagerRunner
from diffulex_core.sampling import PackedSampler
from diffulex_core.scheduler import ContinuousScheduler
from diffulex_core.sizing import choose_num_pages, free_memory
from diffulex_core.tracing import JsonTrace, TorchProfiler
from diffulex_core.warmup import warm_up
from diffulex_core.weights import load_weights

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@attrs.frozen(kw_only=True, eq=False)
class Parts:
    """Everything an engine drives."""

    config: EngineConfig
    tokenizer: Any
    vocab_size: int
    req: ReqFactory
    req_context: ReqContext
    scheduler: Scheduler
    runner: ModelRunner
    observer: Observer
    profiler: TorchProfiler | None


def assemble(loaded: LoadedConfig, *, host: Host) -> Parts:
    """Load the checkpoint and build every part.

    Raises:
        ConfigError, CheckpointError, UnknownNameError: see `Diffulex`.
    """
    config, checkpoint, tokenizer = loaded.config, loaded.checkpoint, loaded.tokenizer
    device = choose_device(config.parallel.device, config.parallel.device_ids)
    dtype = choose_dtype(config.model.dtype, checkpoint, device)
    network = _load_model(config, host, loaded.folder, checkpoint, dtype, device)
    strategy = host.strategies.entry(config.strategy.name)
    make_pattern = host.load(strategy.descriptor.pattern, provenance=strategy.provenance)
    pattern: AttentionPattern = make_pattern(config.decoding.block_size)
    geometry = network.kv_geometry[0]
    backend = select_backend(
        config.attention.attn_impl,
        host,
        AttentionCase(
            device_type=device.type,
            dtype=dtype,
            head_dim=geometry.head_dim,
            num_heads=geometry.num_heads,
            num_kv_heads=geometry.num_kv_heads,
            page_size=config.cache.page_size,
            block_size=config.decoding.block_size,
            windows=tuple(network.windows),
        ),
    )
    vocab_size = min(len(tokenizer), network.vocab_size)
    mask = config.model.mask_token_id
    make_sampler = _component(host, "sampler", config.strategy.sampler, PackedSampler)
    sampler: Sampler = make_sampler(vocab_size=vocab_size, forbidden=frozenset() if mask is None else frozenset({mask}))
    make_runner = _component(host, "runner", config.strategy.runner, EagerRunner)

    def runner_with(kv_store: KVStore) -> ModelRunner:
        runner: ModelRunner = make_runner(
            model=network,
            sampler=sampler,
            pattern=pattern,
            backend=backend,
            kv_store=kv_store,
            page_size=config.cache.page_size,
            device=device,
        )
        return runner

    kv_dtype = dtype if config.cache.kv_cache_dtype == "auto" else DTYPES[config.cache.kv_cache_dtype]
    num_pages = _num_pages(config, network, kv_dtype, device)
    runner = runner_with(KVStore.allocate(network.kv_geometry, num_pages, config.cache.page_size, kv_dtype, device))
    if not config.runtime.skip_warmup:
        warm_up(runner, rows=config.decoding.block_size, num_pages=num_pages, page_size=config.cache.page_size)
    make_cache = _component(host, "kv_cache", config.strategy.kv_cache, PagedKVCache)
    kv_cache: KVCacheManager = make_cache(
        num_pages=num_pages,
        page_size=config.cache.page_size,
        pattern=pattern,
        prefix_caching=config.cache.enable_prefix_caching,
    )
    make_scheduler = _component(host, "scheduler", config.strategy.scheduler, ContinuousScheduler)
    scheduler: Scheduler = make_scheduler(
        kv_cache,
        max_num_reqs=config.schedule.max_num_reqs,
        max_num_batched_tokens=config.schedule.max_num_batched_tokens,
        block_size=config.decoding.block_size,
    )
    profiler = TorchProfiler(config.runtime.profiler_config) if config.runtime.profiler_config.profiler else None
    return Parts(
        config=config,
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        req=_request_factory(host, strategy),
        req_context=_req_context(config, pattern),
        scheduler=scheduler,
        runner=runner,
        observer=_observer(config, host, profiler),
        profiler=profiler,
    )


def choose_device(device: str, device_ids: tuple[int, ...]) -> torch.device:
    """The device that "auto", "cpu", "cuda" or "cuda:i" means here; `device_ids` picks among CUDA devices.

    Raises:
        ConfigError: there is no such CUDA device.
    """
    count = torch.cuda.device_count()
    if device == "auto":
        device = "cuda" if count or device_ids else "cpu"
    if device == "cuda":
        device = f"cuda:{device_ids[0] if device_ids else 0}"
    chosen = torch.device(device)
    if chosen.type == "cuda" and chosen.index >= count:
        seen = f"{count} CUDA device{'s' * (count != 1)}, numbered from 0" if count else "no CUDA device"
        raise ConfigError([f"device {chosen} is wanted, but torch sees {seen}. Use device='cpu' or one that exists."])
    return chosen


def choose_dtype(dtype: str, checkpoint: Mapping[str, Any], device: torch.device) -> torch.dtype:
    """The dtype that "auto" means: float32 on the CPU, elsewhere the checkpoint's own."""
    if dtype != "auto":
        return DTYPES[dtype]
    if device.type == "cpu":
        return torch.float32
    stored = checkpoint.get("dtype", checkpoint.get("torch_dtype", "bfloat16"))
    return DTYPES.get(str(stored), torch.bfloat16)


def _load_model(
    config: EngineConfig,
    host: Host,
    folder: Path,
    checkpoint: Mapping[str, Any],
    dtype: torch.dtype,
    device: torch.device,
) -> DiffusionModel:
    provenance = host.models.entry(config.family.name).provenance
    ctx = BuildContext(dtype=dtype, device=torch.device("meta"))
    network = host.load(config.family.build, provenance=provenance)(checkpoint, ctx)
    load_weights(
        network,
        host.load(config.family.weights, provenance=provenance),
        folder,
        checkpoint,
        dtype=dtype,
        device=device,
        progress=sys.stderr.isatty(),
    )
    model: DiffusionModel = network.eval()
    return model


def _component(host: Host, kind: ComponentKind, name: str | None, default: Any) -> Any:
    """The factory of a registered component, or core's own when the strategy names none."""
    if name is None:
        return default
    entry = host.components[kind].entry(name)
    return host.load(entry.descriptor.factory, provenance=entry.provenance)


def _request_factory(host: Host, strategy: Entry[DecodingStrategy]) -> ReqFactory:
    if strategy.descriptor.req is None:
        return BlockRequest
    factory: ReqFactory = host.load(strategy.descriptor.req, provenance=strategy.provenance)
    return factory


def _num_pages(config: EngineConfig, network: DiffusionModel, dtype: torch.dtype, device: torch.device) -> int:
    per_request = -(-config.schedule.max_model_len // config.cache.page_size)
    return choose_num_pages(
        requested=config.cache.num_pages,
        page_bytes=page_bytes(network.kv_geometry, config.cache.page_size, dtype),
        wanted=per_request * config.schedule.max_num_reqs,
        least=per_request,
        utilization=config.cache.gpu_memory_utilization,
        available=free_memory(device),
    )


def _req_context(config: EngineConfig, pattern: AttentionPattern) -> ReqContext:
    decoding = config.decoding
    auto = AutoNFE(warmup_steps=decoding.auto_max_nfe_warmup_steps, tpf_floor=decoding.auto_max_nfe_tpf_floor)
    return ReqContext(
        pattern=pattern,
        buffer_size=decoding.buffer_size,
        mask_token_id=config.model.mask_token_id,
        eos_token_ids=frozenset(config.model.eos_token_ids),
        max_model_len=config.schedule.max_model_len,
        thresholds=decoding.decoding_thresholds,
        force_rule=config.family.sampler.force_rule,
        auto_nfe=auto if decoding.auto_max_nfe else None,
    )


def _observer(config: EngineConfig, host: Host, profiler: TorchProfiler | None) -> Observer:
    trace = JsonTrace(Path(config.runtime.trace_path)) if config.runtime.trace_path else None
    return combine((trace, profiler, *host.hooks.diffulex_make_observer(config=config)))
