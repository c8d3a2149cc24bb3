"""Parts of an engine on a clock, and an executor whose network costs nothing; a plugin, handed to the host."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
import torch
from torch import Tensor

from diffulex_core.context import ForwardContext
from diffulex_core.engine import Diffulex
from diffulex_core.kv_store import KVStore
from diffulex_core.plugin import (
    AttentionBatch,
    BelievingSampler,
    Component,
    Decision,
    KVCacheManager,
    KVGeometry,
    Register,
    Req,
    Sampler,
    SamplingBatch,
    Scheduler,
    StepOutput,
    StepPlan,
    hookimpl,
)
from diffulex_core.runner import EagerRunner
from diffulex_core.sampling.packed import PackedSampler
from diffulex_core.sizing import Capacity
from diffulex_core.worker import Blueprint, component, make_pattern

EXECUTOR = "without_network"
"""Name of the executor."""


@attrs.define
class Clocks:
    """Nanoseconds of each stage since the clocks were last read: by the wall, and of this thread's processor time."""

    wall: dict[str, int] = attrs.field(factory=dict)
    cpu: dict[str, int] = attrs.field(factory=dict)

    @contextmanager
    def on(self, stage: str) -> Iterator[None]:
        """Add what happens inside to a stage."""
        wall, cpu = time.perf_counter_ns(), time.thread_time_ns()
        try:
            yield
        finally:
            self.cpu[stage] = self.cpu.get(stage, 0) + time.thread_time_ns() - cpu
            self.wall[stage] = self.wall.get(stage, 0) + time.perf_counter_ns() - wall

    def read(self) -> tuple[dict[str, int], dict[str, int]]:
        """Wall and processor time of all stages; the clocks start anew."""
        read = self.wall, self.cpu
        self.wall, self.cpu = {}, {}
        return read


class NoNetwork:
    """A network whose rows are all alike, so that every position is as sure as every other."""

    def __init__(self, clocks: Clocks, vocab_size: int) -> None:
        self._clocks = clocks
        self._vocab_size = vocab_size

    @property
    def kv_geometry(self) -> Sequence[KVGeometry]:
        return (KVGeometry(num_heads=1, num_kv_heads=1, head_dim=1),)

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    @property
    def windows(self) -> Sequence[int | None]:
        return (None,)

    def __call__(self, input_ids: Tensor, positions: Tensor, ctx: ForwardContext) -> Tensor:
        with self._clocks.on("forward"):
            return torch.zeros(len(input_ids), 1)

    def logits(self, hidden: Tensor) -> Tensor:
        with self._clocks.on("forward"):
            return torch.zeros(len(hidden), self._vocab_size)

    def blend(self, ids: Tensor, weights: Tensor, match_norm: Tensor) -> Tensor:
        with self._clocks.on("forward"):
            return torch.zeros(len(ids), 1)

    def soft_embeddings(self, logits: Tensor) -> Tensor:
        with self._clocks.on("forward"):
            return torch.zeros(len(logits), 1)


class NoAttention:
    """Stands where a backend is expected; the network attends to nothing."""

    def attend(
        self, query: Tensor, key_pages: Tensor, value_pages: Tensor, batch: AttentionBatch, scale: float
    ) -> Tensor:
        raise AssertionError("the network attends to nothing")


@attrs.frozen
class ClockedSampler:
    """A strategy's sampler, which decides as that of any engine does."""

    clocks: Clocks
    inner: Sampler

    def sample(self, logits: Tensor, batch: SamplingBatch) -> Sequence[Decision]:
        with self.clocks.on("sampler"):
            return self.inner.sample(logits, batch)


@attrs.frozen
class ClockedBelievingSampler:
    """One that says what it decides from."""

    clocks: Clocks
    inner: BelievingSampler

    def sample(self, logits: Tensor, batch: SamplingBatch) -> Sequence[Decision]:
        return self.decide(self.score(logits, batch), batch)

    def score(self, logits: Tensor, batch: SamplingBatch) -> Tensor:
        with self.clocks.on("sampler"):
            return self.inner.score(logits, batch)

    def score_and_believe(self, logits: Tensor, batch: SamplingBatch) -> tuple[Tensor, Tensor]:
        with self.clocks.on("sampler"):
            return self.inner.score_and_believe(logits, batch)

    def decide(self, scored: Tensor, batch: SamplingBatch) -> Sequence[Decision]:
        with self.clocks.on("sampler"):
            return self.inner.decide(scored, batch)


class HostExecutor:
    """Packs plans and samples, with nothing in between."""

    def __init__(self, blueprint: Blueprint, **arguments: Any) -> None:
        self.clocks = Clocks()
        config, host = blueprint.config, arguments["host"]
        self._page_size = config.cache.page_size
        self._pattern = make_pattern(config, host)
        self._network = NoNetwork(self.clocks, blueprint.num_tokens)
        mask = config.model.mask_token_id
        sampler: Sampler = component(host, "sampler", config.strategy.sampler, PackedSampler)(
            vocab_size=self.vocab_size, forbidden=frozenset() if mask is None else frozenset({mask})
        )
        self._sampler: Sampler = ClockedSampler(self.clocks, sampler)
        if isinstance(sampler, BelievingSampler):
            self._sampler = ClockedBelievingSampler(self.clocks, sampler)

    @property
    def vocab_size(self) -> int:
        return self._network.vocab_size

    def capacity(self) -> Capacity:
        return Capacity(page_bytes=8 * self._page_size, available=2**33)

    def allocate(self, num_pages: int) -> None:
        device = torch.device("cpu")
        self._runner = EagerRunner(
            model=self._network,
            sampler=self._sampler,
            pattern=self._pattern,
            backend=NoAttention(),
            kv_store=KVStore.allocate(self._network.kv_geometry, num_pages, self._page_size, torch.float32, device),
            page_size=self._page_size,
            device=device,
        )

    def at_leisure(self, work: Callable[[], None]) -> None:
        def clocked() -> None:
            with self.clocks.on("leisure"):
                work()

        self._runner.at_leisure(clocked)

    def execute(self, plan: StepPlan) -> StepOutput:
        with self.clocks.on("execute"):
            return self._runner.execute(plan)

    def close(self) -> None:
        self._runner.close()


@attrs.frozen
class ClockedScheduler:
    """An engine's scheduler; `schedule` and `update` are stages."""

    clocks: Clocks
    inner: Scheduler

    def add(self, request: Req) -> None:
        self.inner.add(request)

    def abort(self, request_id: int, *reason: Any) -> bool:
        return self.inner.abort(request_id, *reason)

    def schedule(self) -> StepPlan | None:
        with self.clocks.on("schedule"):
            return self.inner.schedule()

    def update(self, plan: StepPlan, output: StepOutput) -> Sequence[Req]:
        with self.clocks.on("update"):
            return self.inner.update(plan, output)

    def has_work(self) -> bool:
        return self.inner.has_work()

    def check_integrity(self) -> None:
        self.inner.check_integrity()


class ClockedCache:
    """A scheduler's cache. A clock at every call costs time of its own."""

    def __init__(self, clocks: Clocks, inner: KVCacheManager) -> None:
        self.clocks, self.inner = clocks, inner

    def __getattr__(self, name: str) -> Any:
        """Whatever is done with pages is one stage."""
        found = getattr(self.inner, name)
        if not callable(found):
            return found

        def clocked(*arguments: Any) -> Any:
            with self.clocks.on("pages"):
                return found(*arguments)

        return clocked


def put_on_clocks(engine: Diffulex, *, pages: bool) -> Clocks:
    """Clocks of an engine with `EXECUTOR`.

    Args:
        pages: the stage "pages", too, which makes the stages around it slower than they are.
    """
    parts = vars(engine)["_parts"]
    clocks: Clocks = parts.runner.clocks
    if pages:
        books = vars(parts.scheduler)
        books["_kv"] = ClockedCache(clocks, books["_kv"])
    vars(engine)["_parts"] = attrs.evolve(parts, scheduler=ClockedScheduler(clocks, parts.scheduler))
    return clocks


@hookimpl
def diffulex_register_components(register: Register[Component]) -> None:
    register(Component(kind="executor", name=EXECUTOR, factory=f"{__name__}:HostExecutor"))
