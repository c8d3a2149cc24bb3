"""Checks of executors: each beside the engine's own process, what they tell of failures, and what they leave behind."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import attrs
import numpy as np

from diffulex_core.compat import missing_capabilities
from diffulex_core.config.load import LoadedConfig, load_config
from diffulex_core.errors import CheckpointError
from diffulex_core.host import Host
from diffulex_core.kv_cache import PagedKVCache
from diffulex_core.protocols import Executor
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.scheduler import ContinuousScheduler
from diffulex_core.testing.check import AnyCheck, CheckFailed, check
from diffulex_core.testing.checkpoints import write_checkpoint
from diffulex_core.testing.effort import Effort
from diffulex_core.testing.engines import configured
from diffulex_core.testing.journeys import Bench, bench
from diffulex_core.testing.patience import patience
from diffulex_core.testing.subjects import CPU, ExecutorSubject, FamilySubject, StrategySubject
from diffulex_core.types import Decision
from diffulex_core.worker import Blueprint, in_process

PAGES = 24
STEPS = 200
PROCESSES = Path("/proc")
OPEN_FILES = Path("/proc/self/fd")


@attrs.frozen(kw_only=True, eq=False)
class Order:
    """What an executor is made from, and who asks it.

    Attributes:
        blueprint: what to build.
        host: the installed plugins.
        bench: makes requests.
    """

    blueprint: Blueprint
    host: Host
    bench: Bench

    def executor(self, subject: ExecutorSubject) -> Executor:
        """As the engine makes one that has a device for itself."""
        with _patience("making the executor"):
            return subject.factory(self.blueprint, host=self.host, devices=[CPU], replica=0, sharers=1, progress=False)


def _patience(what: str) -> Any:
    return patience(what, busy=60, idle=400)


def _pair(host: Host) -> StrategySubject | None:
    """An installed family that has a `tiny`, with the strategy that it prefers: worker processes find both again."""
    for entry in host.models.entries():
        wanted = entry.descriptor.default_strategy
        if entry.descriptor.tiny is None or wanted is None or wanted not in host.strategies:
            continue
        strategy = host.strategies.entry(wanted)
        mode = str(strategy.descriptor.forces.get("sampling_mode", "naive"))
        if not missing_capabilities(entry.descriptor, strategy.descriptor.in_mode(mode)):
            config = dict(host.load(entry.descriptor.tiny, provenance=entry.provenance))
            partner = FamilySubject(host=host, entry=entry, config=config)
            return StrategySubject(host=host, entry=strategy, mode=mode, partner=partner)
    return None


def _nobody_to_run(subject: ExecutorSubject) -> str | None:
    if _pair(Host.discover()) is None:
        return "no family with a `tiny` is installed (pip install diffulex), and worker processes find no other"
    return None


@contextmanager
def _order(**settings: Any) -> Iterator[Order]:
    host = Host.discover()
    pair = _pair(host)
    assert pair is not None, "the check does not apply without an installed family"
    with TemporaryDirectory() as name, bench(pair) as made:
        folder = Path(name)
        write_checkpoint(pair.partner, folder)

        def load(options: Mapping[str, Any]) -> LoadedConfig:
            return load_config(str(folder), options, host=host)

        loaded = configured(
            pair.partner, pair, {"device": "cpu", "dtype": "float32", "skip_warmup": True, **settings}, load
        )
        blueprint = Blueprint(
            config=loaded.config,
            folder=loaded.folder,
            checkpoint=loaded.checkpoint,
            num_tokens=len(loaded.tokenizer),
        )
        yield Order(blueprint=blueprint, host=host, bench=made)


def _decided(order: Order, executor: Executor) -> list[list[Decision]]:
    """What an executor decides in each step of a few requests."""
    config, context = order.blueprint.config, order.bench.context
    cache = PagedKVCache(
        num_pages=PAGES,
        page_size=config.cache.page_size,
        pattern=context.pattern,
        prefix_caching=config.cache.enable_prefix_caching,
    )
    scheduler = ContinuousScheduler(
        cache,
        max_num_reqs=4,
        max_num_batched_tokens=config.schedule.max_num_batched_tokens,
        block_size=context.pattern.block_size,
    )
    plain = order.bench.vocabulary.plain
    for number, length in enumerate((5, 9, 3)):
        params = SamplingParams(temperature=0.0 if number else 0.8, seed=number, max_tokens=6, ignore_eos=True)
        prompt = np.array([plain[(7 * at + 13 * number) % len(plain)] for at in range(length)], dtype=np.int64)
        scheduler.add(order.bench.factory(request_id=number, prompt=prompt, params=params, context=context))
    said: list[list[Decision]] = []
    while scheduler.has_work() and len(said) < STEPS:
        plan = scheduler.schedule()
        assert plan is not None, "requests wait or run"
        with _patience("execute()"):
            output = executor.execute(plan)
        if len(output.decisions) != len(plan.windows):
            raise CheckFailed(f"a plan of {len(plan.windows)} windows gets {len(output.decisions)} decisions")
        said.append(list(output.decisions))
        scheduler.update(plan, output)
    return said


def _ready(executor: Executor) -> None:
    with _patience("capacity()"):
        found = executor.capacity()
    if found.page_bytes <= 0 or found.available <= 0:
        raise CheckFailed(f"capacity() is {found}; expected are the bytes of a page, and those that are free")
    with _patience("allocate()"):
        executor.allocate(PAGES)


@check(ExecutorSubject, when=_nobody_to_run)
def check_executor_decides_as_one_process_does(subject: ExecutorSubject, effort: Effort) -> None:
    """The same plans get the same decisions as from the engine's own process, with the same weights.

    Why: where a network runs is a matter of speed. An answer that depends on it cannot be reproduced.
    Fix: give every worker the whole blueprint, hand each plan on as it is, and return the output of rank 0.
    """
    with _order() as order:
        trusted = in_process(order.blueprint, host=order.host, devices=[CPU], replica=0, sharers=1, progress=False)
        _ready(trusted)
        executor = order.executor(subject)
        try:
            _ready(executor)
            if executor.vocab_size != trusted.vocab_size:
                raise CheckFailed(f"vocab_size is {executor.vocab_size}; the network decides {trusted.vocab_size} ids")
            expected, found = _decided(order, trusted), _decided(order, executor)
        finally:
            executor.close()
            trusted.close()
    if len(found) != len(expected):
        raise CheckFailed(f"requests take {len(found)} steps, and {len(expected)} in the engine's own process")
    for step, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        _compare(step, ours, theirs)


def _compare(step: int, found: Sequence[Decision], expected: Sequence[Decision]) -> None:
    for number, (one, two) in enumerate(zip(found, expected, strict=True)):
        facts = [(each.positions.tolist(), each.tokens.tolist(), each.accepted.tolist()) for each in (one, two)]
        if facts[0] != facts[1] or not np.allclose(one.confidence, two.confidence, atol=1e-4):
            raise CheckFailed(
                f"step {step}, window {number}: positions, tokens and accepted are {facts[0]} with confidence "
                f"{one.confidence.tolist()}; in the engine's own process {facts[1]} with {two.confidence.tolist()}"
            )


@check(ExecutorSubject, when=_nobody_to_run)
def check_executor_tells_failures_and_ends(subject: ExecutorSubject, effort: Effort) -> None:
    """A checkpoint that cannot be loaded is told as the loader tells it; `close` ends everything, and may be repeated.

    After a failure another executor starts, works, and leaves neither a process nor an open file or socket.

    Why: whoever waits for an engine that never comes up, or runs one after the other in a notebook, loses the machine.
    Fix: raise the worker's own error from the constructor or from `capacity`; in `close` wait for every process that
    was started, and close pipes, sockets and shared memory.
    """
    with _order(load_format="auto") as order:
        executor = None
        try:
            executor = order.executor(subject)
            with _patience("capacity()"):
                executor.capacity()
        except CheckpointError:
            pass
        except Exception as error:
            raise CheckFailed(
                f"a checkpoint without weights: {type(error).__name__} and no CheckpointError: {error}"
            ) from error
        else:
            raise CheckFailed("a checkpoint without weights is loaded, and capacity() says nothing of it")
        finally:
            _close(executor)
    del executor, order
    with _order() as order:
        before = _belongings()
        executor = order.executor(subject)
        try:
            _ready(executor)
        finally:
            _close(executor)
    del executor, order
    for what, (had, has) in _changed(before, _belongings()).items():
        raise CheckFailed(f"after close() this process has {has} {what}, and before the executor was made {had}")


def _close(executor: Executor | None) -> None:
    if executor is None:
        return
    for _ in range(2):
        with _patience("close()"):
            executor.close()


def _belongings() -> dict[str, int]:
    """How many children and open files this process has, where the system tells."""
    gc.collect()
    counts = dict[str, int]()
    if OPEN_FILES.is_dir():
        counts["open files"] = len(list(OPEN_FILES.iterdir()))
        counts["child processes"] = sum(_parent(each) == os.getpid() for each in PROCESSES.glob("[0-9]*"))
    return counts


def _parent(process: Path) -> int:
    """The number of a process's parent; 0 where the process is gone by now."""
    with suppress(OSError):
        # The name in brackets may hold anything; state and parent follow it.
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    return 0


def _changed(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    return {what: (had, after[what]) for what, had in before.items() if after[what] > had}


CHECKS: tuple[AnyCheck, ...] = (check_executor_decides_as_one_process_does, check_executor_tells_failures_and_ends)
