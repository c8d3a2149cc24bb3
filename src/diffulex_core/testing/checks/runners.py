"""Checks of runners: each beside the engine's own, on the same plans, with the same weights and pages of its own."""

from __future__ import annotations

import gc
import pickle
import weakref
from collections.abc import Callable, Sequence

import attrs
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from diffulex_core.attention.reference import TorchReference
from diffulex_core.context import BuildContext
from diffulex_core.kv_cache import PagedKVCache
from diffulex_core.kv_store import KVStore
from diffulex_core.protocols import DiffusionModel, ModelRunner
from diffulex_core.runner import EagerRunner
from diffulex_core.sampling import PackedSampler
from diffulex_core.scheduler import ContinuousScheduler
from diffulex_core.testing.check import AnyCheck, CheckFailed, check
from diffulex_core.testing.effort import Effort
from diffulex_core.testing.engines import SHARPNESS
from diffulex_core.testing.fakes.network import MASK
from diffulex_core.testing.patience import patience
from diffulex_core.testing.plans import fingerprint
from diffulex_core.testing.reference import model
from diffulex_core.testing.serving import Serving
from diffulex_core.testing.subjects import CPU, RunnerSubject
from diffulex_core.testing.tolerances import require_close
from diffulex_core.testing.workload import Ask, Setting, ask, asks, settings
from diffulex_core.types import Decision, SamplingBatch, StepOutput, StepPlan
from diffulex_core.weights import dummy_weights

PAGES = 24
STEPS = 400
"""More than the requests of one example take."""

Make = Callable[..., ModelRunner]


@attrs.define(eq=False)
class Recording:
    """The engine's sampler, which notes what it is asked and what it answers."""

    logits: list[Tensor] = attrs.field(factory=list)
    answers: list[Decision] = attrs.field(factory=list)
    _sampler: PackedSampler = attrs.field(
        factory=lambda: PackedSampler(vocab_size=MASK + 1, forbidden=frozenset({MASK})), init=False
    )

    def sample(self, logits: Tensor, batch: SamplingBatch) -> Sequence[Decision]:
        """See `Sampler`."""
        decisions = self._sampler.sample(logits, batch)
        self.logits.append(logits.float().clone())
        self.answers.extend(decisions)
        return decisions

    def clear(self) -> None:
        """Forget the step before."""
        self.logits.clear()
        self.answers.clear()


@attrs.define(eq=False)
class Stand:
    """A runner with all that it was made of."""

    runner: ModelRunner
    sampler: Recording
    kv_store: KVStore

    @classmethod
    def of(cls, make: Make, setting: Setting) -> Stand:
        """Over the kit's small decoder; its pages hold NaN, so that what nobody wrote is seen when it is read."""
        network = _network()
        kv_store = KVStore.allocate(network.kv_geometry, PAGES, setting.block_size, torch.float32, CPU)
        for pages in (*kv_store.key_pages, *kv_store.value_pages):
            pages.fill_(torch.nan)
        sampler = Recording()
        runner = make(
            model=network,
            sampler=sampler,
            pattern=setting.pattern,
            backend=TorchReference(),
            kv_store=kv_store,
            page_size=setting.block_size,
            device=CPU,
            max_logits_tokens=None,
            cache_policy=None,
        )
        return cls(runner, sampler, kv_store)


@attrs.define(eq=False)
class Beside:
    """Executes every plan twice and goes on with what the engine's own runner decides."""

    tried: Stand
    trusted: Stand

    def execute(self, plan: StepPlan) -> StepOutput:
        """Raises `CheckFailed` where the runner under test does not do what the engine's own does."""
        before = fingerprint(plan)
        for stand in (self.tried, self.trusted):
            stand.sampler.clear()
        expected = self.trusted.runner.execute(plan)
        with patience("execute()", busy=30, idle=120):
            found = self.tried.runner.execute(plan)
        if fingerprint(plan) != before:
            raise CheckFailed(f"execute() changed the plan of step {plan.step}")
        self._compare(plan, found, expected)
        return expected

    def _compare(self, plan: StepPlan, found: StepOutput, expected: StepOutput) -> None:
        asked, wanted = self.tried.sampler, self.trusted.sampler
        if len(found.decisions) != len(plan.windows):
            raise CheckFailed(
                f"step {plan.step} has {len(plan.windows)} windows, and {len(found.decisions)} decisions come back"
            )
        rows = [sum(len(each) for each in sampler.logits) for sampler in (asked, wanted)]
        if rows[0] != rows[1]:
            raise CheckFailed(f"in step {plan.step} {rows[0]} rows are sampled; the plan asks for {rows[1]}")
        if rows[0]:
            require_close(torch.cat(asked.logits), torch.cat(wanted.logits), f"logits of step {plan.step}")
        said = iter([each for each in asked.answers if len(each.positions)])
        for window, one, right in zip(plan.windows, found.decisions, expected.decisions, strict=True):
            handed_on = not len(one.positions) or _same(one, next(said, one))
            if not handed_on or one.positions.tolist() != right.positions.tolist():
                raise CheckFailed(
                    f"in step {plan.step} the decision about request {window.request_id} is not the one that the "
                    "sampler made; hand on its decisions, in the order of the windows"
                )
        if _plain(pickle.loads(pickle.dumps(found))) != _plain(found):
            raise CheckFailed(f"the output of step {plan.step} comes back from a pickle as another one")


def _network() -> DiffusionModel:
    network = model.build(model.TINY, BuildContext(dtype=torch.float32, device=CPU))
    dummy_weights(network, device=CPU)
    assert isinstance(network, nn.Module), "a network is a torch.nn.Module"
    network.register_forward_hook(lambda module, inputs, hidden: hidden * SHARPNESS)
    return network


def _plain(output: StepOutput) -> object:
    return [_facts(each) for each in output.decisions]


def _facts(decision: Decision) -> object:
    return (
        decision.positions.tolist(),
        decision.tokens.tolist(),
        decision.accepted.tolist(),
        decision.confidence.tolist(),
    )


def _same(one: Decision, two: Decision) -> bool:
    return _facts(one) == _facts(two)


def _served(stand: Stand, setting: Setting, requests: Sequence[Ask], *, pages: int) -> Serving:
    """Requests before a runner that is watched."""
    beside = Beside(stand, Stand.of(EagerRunner, setting))
    serving = Serving(
        ContinuousScheduler, PagedKVCache, setting, num_pages=pages, budget=48, max_num_reqs=4, runner=beside
    )
    for each in requests:
        serving.add(each)
    return serving


def _run_out(servings: Sequence[Serving]) -> None:
    """Steps of each in turn, until nobody is live."""
    for _ in range(STEPS):
        waiting = [serving for serving in servings if serving.live]
        if not waiting:
            return
        for serving in waiting:
            serving.step()
    raise CheckFailed(f"requests have not ended after {STEPS} steps")


@check(RunnerSubject)
def check_runner_executes_plans(subject: RunnerSubject, effort: Effort) -> None:
    """A step computes what the engine's own runner computes of the same plan, and hands on the sampler's decisions.

    Requests of every length come together, lose their pages and come back, with one or several blocks, aligned and
    shifted logits. Pages that nobody wrote hold NaN.

    Why: the runner is where plans become tensors. A row at a wrong position, a stale page table or a decision for
    somebody else answers nonsense for some batches alone.
    Fix: feed `span.tokens` at their positions, store their K/V at the slots of the window's page table, let each row
    see the interval that `pattern` says, and sample the rows of `span.groups`. A shifted row whose predecessor was fed
    in an earlier step is kept for it (`span.keep`) until a plan names its request in `ended`.
    `diffulex_core.packing.pack` does the integers.
    """

    @effort.for_all(0.5, setting=settings(), asked=st.lists(asks(), min_size=1, max_size=4), tight=st.booleans())
    def holds(setting: Setting, asked: list[Ask], tight: bool) -> None:
        least = -(-setting.max_model_len // setting.block_size)
        stand = Stand.of(subject.factory, setting)
        pages = min(PAGES, least + 1) if tight else PAGES
        _run_out([_served(stand, setting, _fitting(asked, setting, pages), pages=pages)])
        stand.runner.close()


def _fitting(asked: Sequence[Ask], setting: Setting, pages: int) -> list[Ask]:
    """Those that the pages let run alone."""
    return [
        each
        for each in asked
        if each.make(setting, 0).most_slots() <= pages * setting.block_size and len(each.prompt) < setting.max_model_len
    ]


@check(RunnerSubject)
def check_runners_share_nothing(subject: RunnerSubject, effort: Effort) -> None:
    """Two runners of one process that take turns compute what each computes alone, for requests with the same ids.

    Why: an engine is a guest in somebody's program, where another one may run. Buffers of the module, and rows that are
    kept by a request's id, mix their answers.
    Fix: keep everything on the instance.
    """
    for shifted in (True, False):
        setting = Setting(shifted=shifted, accept=0.3)
        stands = [Stand.of(subject.factory, setting) for _ in range(2)]
        batches = [
            [ask(5), ask(8, first=2, seed=1)],
            [ask(8, first=7, seed=5), ask(3, first=1, seed=2), ask(6, seed=7)],
        ]
        _run_out([
            _served(stand, setting, batch, pages=PAGES) for stand, batch in zip(stands, batches, strict=True)
        ])  # fmt: skip


@check(RunnerSubject)
def check_runners_close(subject: RunnerSubject, effort: Effort) -> None:
    """`close` lets go of the pages, in the middle of a request as well, and the next runner computes as the first did.

    Why: the pages are most of a device's memory, and the next engine needs it.
    Fix: drop network, pages, graphs and kept rows in `close`; leave nothing in the module that refers to them.
    """
    setting = Setting(shifted=True, accept=0.3)
    stand = Stand.of(subject.factory, setting)
    serving = _served(stand, setting, [ask(6), ask(9, seed=3)], pages=PAGES)
    for _ in range(3):
        serving.step()
    held = [weakref.ref(pages) for pages in (*stand.kv_store.key_pages, *stand.kv_store.value_pages)]
    runner = stand.runner
    del serving, stand
    runner.close()
    gc.collect()
    if any(each() is not None for each in held):
        raise CheckFailed("after close() the pages are still held; let go of `kv_store` and of everything made of it")
    _run_out([_served(Stand.of(subject.factory, setting), setting, [ask(6), ask(9, seed=3)], pages=PAGES)])


CHECKS: tuple[AnyCheck, ...] = (check_runner_executes_plans, check_runners_share_nothing, check_runners_close)
