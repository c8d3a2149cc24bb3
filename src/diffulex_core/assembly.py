"""From a configuration to the parts of an engine: its own side here, the device's side in `worker`."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import attrs

from diffulex_core.blocks import BlockRequest
from diffulex_core.config import EngineConfig
from diffulex_core.config.load import LoadedConfig
from diffulex_core.devices import choose_devices
from diffulex_core.host import Host
from diffulex_core.kv_cache import PagedKVCache
from diffulex_core.observers import Observer, combine
from diffulex_core.pattern import AttentionPattern
from diffulex_core.profiling.profiler import EngineProfiler
from diffulex_core.profiling.ring import StepRing
from diffulex_core.profiling.stages import StageClock
from diffulex_core.protocols import Executor, KVCacheManager, ModelRunner, ReqFactory, Scheduler
from diffulex_core.replicas import ReplicaExecutor, ReplicaScheduler
from diffulex_core.req_context import AutoNFE, ReqContext
from diffulex_core.scheduler import ContinuousScheduler
from diffulex_core.sizing import Capacity, choose_num_pages
from diffulex_core.tracing import JsonTrace
from diffulex_core.weights.lora import warn_of_another_base
from diffulex_core.worker import Blueprint, component, make_pattern


@attrs.frozen(kw_only=True, eq=False)
class Parts:
    """Everything an engine drives."""

    config: EngineConfig
    tokenizer: Any
    vocab_size: int
    req: ReqFactory
    req_context: ReqContext
    scheduler: Scheduler
    kv_caches: tuple[KVCacheManager, ...]
    runner: ModelRunner
    observer: Observer
    profiler: EngineProfiler
    clock: StageClock
    times: StepRing


def assemble(loaded: LoadedConfig, *, host: Host) -> Parts:
    """Load the checkpoint and build every part.

    Raises:
        ConfigError, CheckpointError, UnknownNameError: see `Diffulex`.
    """
    config = loaded.config
    blueprint = Blueprint(
        config=config,
        folder=loaded.folder,
        checkpoint=loaded.checkpoint,
        num_tokens=len(loaded.tokenizer),
        adapter=loaded.adapter,
    )
    if loaded.adapter is not None:
        warn_of_another_base(loaded.adapter, (config.model.model, str(loaded.folder)))
    pattern, profiling = make_pattern(config, host), config.runtime.profiler_config
    with ExitStack() as undo:
        executor = _executor(blueprint, host)
        undo.callback(executor.close)
        num_pages = _num_pages(config, executor.capacity())
        executor.allocate(num_pages)
        clock, times = StageClock(("schedule", "execute", "update")), StepRing(profiling.keep_steps)
        profiler = EngineProfiler(profiling, executor=executor, steps=times, clock=clock)
        scheduler, kv_caches = _schedulers(config, host, pattern, num_pages)
        parts = Parts(
            config=config,
            tokenizer=loaded.tokenizer,
            vocab_size=executor.vocab_size,
            req=_request_factory(config, host),
            req_context=_req_context(config, pattern, executor.vocab_size),
            scheduler=scheduler,
            kv_caches=kv_caches,
            runner=executor,
            observer=_observer(config, host, profiler),
            profiler=profiler,
            clock=clock,
            times=times,
        )
        undo.pop_all()
    return parts


def _executor(blueprint: Blueprint, host: Host) -> Executor:
    """The executor that the configuration names, or one for each replica behind a common one."""
    parallel = blueprint.config.parallel
    ranks, replicas = parallel.tensor_parallel_size, parallel.data_parallel_size
    devices = choose_devices(parallel.device, parallel.device_ids, ranks * replicas)
    make = component(host, "executor", _executor_name(blueprint.config), None)
    executors: list[Executor] = []
    with ExitStack() as undo:
        for replica in range(replicas):
            executor = make(
                blueprint,
                host=host,
                devices=devices[replica * ranks : (replica + 1) * ranks],
                replica=replica,
                sharers=len(devices) // len(set(devices)),
                progress=replica == 0 and sys.stderr.isatty(),
            )
            undo.callback(executor.close)
            executors.append(executor)
        undo.pop_all()
    return executors[0] if replicas == 1 else ReplicaExecutor(executors)


def _executor_name(config: EngineConfig) -> str:
    parallel = config.parallel
    if parallel.executor != "auto":
        return parallel.executor
    return "in_process" if parallel.tensor_parallel_size * parallel.data_parallel_size == 1 else "spawned"


def _schedulers(
    config: EngineConfig, host: Host, pattern: AttentionPattern, num_pages: int
) -> tuple[Scheduler, tuple[KVCacheManager, ...]]:
    """One scheduler for each replica, behind a common one where there are several, and the pages of each."""
    made = [_scheduler(config, host, pattern, num_pages) for _ in range(config.parallel.data_parallel_size)]
    schedulers = [scheduler for scheduler, _ in made]
    common = schedulers[0] if len(schedulers) == 1 else ReplicaScheduler(schedulers)
    return common, tuple(kv_cache for _, kv_cache in made)


def _scheduler(
    config: EngineConfig, host: Host, pattern: AttentionPattern, num_pages: int
) -> tuple[Scheduler, KVCacheManager]:
    """A scheduler, and the pages of its own that it divides."""
    make_cache = component(host, "kv_cache", config.strategy.kv_cache, PagedKVCache)
    kv_cache: KVCacheManager = make_cache(
        num_pages=num_pages,
        page_size=config.cache.page_size,
        pattern=pattern,
        prefix_caching=config.cache.enable_prefix_caching,
    )
    make_scheduler = component(host, "scheduler", config.strategy.scheduler, ContinuousScheduler)
    scheduler: Scheduler = make_scheduler(
        kv_cache,
        max_num_reqs=config.schedule.max_num_reqs,
        max_num_batched_tokens=config.schedule.max_num_batched_tokens,
        block_size=pattern.block_size,
        max_refresh_tokens=config.schedule.max_refresh_tokens,
    )
    return scheduler, kv_cache


def _request_factory(config: EngineConfig, host: Host) -> ReqFactory:
    if config.strategy.req is None:
        return BlockRequest
    provenance = host.strategies.entry(config.strategy.name).provenance
    factory: ReqFactory = host.load(config.strategy.req, provenance=provenance)
    return factory


def _num_pages(config: EngineConfig, capacity: Capacity) -> int:
    per_request = -(-config.schedule.max_model_len // config.cache.page_size)
    return choose_num_pages(
        requested=config.cache.num_pages,
        page_bytes=capacity.page_bytes,
        wanted=per_request * config.schedule.max_num_reqs,
        least=per_request,
        utilization=config.cache.gpu_memory_utilization,
        available=capacity.available,
    )


def _req_context(config: EngineConfig, pattern: AttentionPattern, vocab_size: int) -> ReqContext:
    decoding = config.decoding
    auto = AutoNFE(warmup_steps=decoding.auto_max_nfe_warmup_steps, tpf_floor=decoding.auto_max_nfe_tpf_floor)
    return ReqContext(
        pattern=pattern,
        buffer_size=decoding.buffer_size,
        mask_token_id=config.model.mask_token_id,
        eos_token_ids=frozenset(config.model.eos_token_ids),
        max_model_len=config.schedule.max_model_len,
        thresholds=decoding.decoding_thresholds,
        shifted=config.family.logits == "shifted",
        force_rule=config.family.sampler.force_rule,
        auto_nfe=auto if decoding.auto_max_nfe else None,
        options=config.strategy_options,
        vocab_size=vocab_size,
        sparse=config.cache.sparse,
    )


def _observer(config: EngineConfig, host: Host, profiler: EngineProfiler) -> Observer:
    trace = JsonTrace(Path(config.runtime.trace_path)) if config.runtime.trace_path else None
    return combine((trace, profiler, *host.hooks.diffulex_make_observer(config=config)))
