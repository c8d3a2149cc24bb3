"""Checks of steps of static shape, which are padded, filled into the same buffers and replayed."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import attrs
import torch
from torch import Tensor

from diffulex_core.attention.triton.backend import PagedTriton
from diffulex_core.context import ForwardContext, SoftInputs
from diffulex_core.graphs import CudaGraphs, Graphs, Rerun, StaticForward
from diffulex_core.kv_cache import PagedKVCache
from diffulex_core.kv_store import KVStore
from diffulex_core.plugin import Capability
from diffulex_core.protocols import AttentionBackend, DiffusionModel
from diffulex_core.runner import EagerRunner
from diffulex_core.scheduler import ContinuousScheduler
from diffulex_core.testing.check import AnyCheck, CheckFailed, check
from diffulex_core.testing.checks.runners import PAGES, STEPS, Beside, Stand
from diffulex_core.testing.effort import Effort
from diffulex_core.testing.engines import STATIC, engines, serve, tokens
from diffulex_core.testing.forward import META, DenseAttention, Fed, Memory, context
from diffulex_core.testing.sequences import PAGE, draws, noise, pages_for, passes, scattered
from diffulex_core.testing.serving import Serving
from diffulex_core.testing.static_runner import LIMITS
from diffulex_core.testing.subjects import CPU, EngineSubject, FamilySubject, RunnerSubject
from diffulex_core.testing.tolerances import require_close
from diffulex_core.testing.views import cut_view
from diffulex_core.testing.workload import Setting, ask
from diffulex_core.types import StepOutput, StepPlan
from diffulex_core.weights import dummy_weights

COUNTS = (5, 3, 1, 4, 6, 1, 3, 6)
"""Sequences of the steps of one example; shapes come again with others between."""


@attrs.frozen(kw_only=True)
class Place:
    """A device with what captures there.

    Attributes:
        device: where the network runs.
        graphs: captures its steps.
        backend: attention.
        close: which tolerance is meant.
    """

    device: torch.device
    graphs: Graphs
    backend: AttentionBackend
    close: str


def _places(effort: Effort) -> Iterator[Place]:
    yield Place(device=CPU, graphs=Rerun(), backend=DenseAttention(), close="dense")
    if effort.covers("gpu") and torch.cuda.is_available():
        device = torch.device("cuda", 0)
        yield Place(device=device, graphs=CudaGraphs(device), backend=PagedTriton(), close="device")


@check(FamilySubject)
def check_static_steps_compute_the_same(subject: FamilySubject, effort: Effort) -> None:
    """Steps that are padded to one of few shapes and filled into its buffers have the logits and K/V of eager steps.

    Shapes come again with other numbers of rows and sequences, at other positions, in other pages, fed embeddings or
    not. By tier gpu steps are captured as CUDA graphs, too.

    Why: on a GPU decode steps are replayed. A network that knows its inputs by their address or their number, or reads
    `ctx.soft.rows` itself, then answers the step for which the graph was captured.
    Fix: compute everything in `forward` from its arguments, by operations of torch or kernels on the device, and use
    `ctx.soft.over` and `ctx.attend`.
    """
    for place in _places(effort):
        for draw in draws(effort):
            _compare_steps(subject, place, draw)


def _compare_steps(subject: FamilySubject, place: Place, draw: Random) -> None:
    network = _network(subject, place)
    view, steps, pages = cut_view(subject.family), list[list[Fed]](), 40
    for count in COUNTS:
        made = passes(network, view, draw, count)
        tables, used = scattered([pages_for(len(each.tokens)) for each in made], draw)
        assert used <= pages, "the steps of the kit fit its pages"
        steps.append([each.second(table) for each, table in zip(made, tables, strict=True)])
    tried = Memory.of(network, pages, PAGE)
    noise(tried, draw)
    tried, trusted = _on(place, tried), _on(place, tried.copy())
    static, width = StaticForward(network=network, graphs=place.graphs, limits=LIMITS), 0
    for number, fed in enumerate(steps):
        rows = sum(len(each.tokens) for each in fed)
        what = f"step {number}, of {len(fed)} sequences and {rows} rows, which was {{}} and not run eagerly"
        soft = _soft(subject, rows, width, number, place)
        told = [_step(network, place, memory, fed, soft) for memory in (tried, trusted)]
        with torch.inference_mode():
            got, how = static(StepPlan(step=number, windows=()), *told[0])
            expected = _network(subject, place)(*told[1])
            if got.shape != expected.shape:
                raise CheckFailed(f"{what.format(how)}: hidden rows {list(got.shape)}, not {list(expected.shape)}.")
            width = expected.shape[1]
            logits = network.logits(got[:rows]), network.logits(expected[:rows])
        require_close(*logits, what.format(how), backend=place.close)
        _require_equal_pages(tried.keys + tried.values, trusted.keys + trusted.values, what.format(how))


def _network(subject: FamilySubject, place: Place) -> DiffusionModel:
    """Always with the same weights."""
    network = subject.build(device=META)
    dummy_weights(network, device=place.device, seed=0)
    return network


def _on(place: Place, memory: Memory) -> Memory:
    keys, values = (tuple(each.to(place.device) for each in pages) for pages in (memory.keys, memory.values))
    return attrs.evolve(memory, keys=keys, values=values)


def _step(
    network: DiffusionModel, place: Place, memory: Memory, fed: list[Fed], soft: SoftInputs | None
) -> tuple[Tensor, Tensor, ForwardContext]:
    """Ids, positions and context."""
    ids = [token for each in fed for token in each.tokens]
    positions = [position for each in fed for position in each.positions]
    padding = -len(ids) % 8
    ctx = context(network, memory, fed, backend=place.backend, padding=padding)
    ctx = attrs.evolve(
        ctx,
        slots=ctx.slots.to(place.device),
        final=None if ctx.final is None else ctx.final.to(place.device),
        batches=tuple(
            attrs.evolve(
                batch,
                key_start=batch.key_start.to(place.device),
                key_end=batch.key_end.to(place.device),
                row_sequence=batch.row_sequence.to(place.device),
                page_tables=batch.page_tables.to(place.device),
            )
            for batch in ctx.batches
        ),
        soft=soft,
    )
    return (
        torch.tensor(ids + [0] * padding, device=place.device),
        torch.tensor(positions + [0] * padding, device=place.device),
        ctx,
    )


def _soft(subject: FamilySubject, rows: int, width: int, number: int, place: Place) -> SoftInputs | None:
    """Embeddings for some rows of every other step, where the network takes any."""
    if not {Capability.SOFT_INPUTS, Capability.SELF_CONDITIONING} & subject.family.provides or number % 2 == 0:
        return None
    at = torch.arange(rows)[number % 3 :: 2]
    embeddings = torch.randn(len(at), width, generator=torch.Generator().manual_seed(number))
    return SoftInputs(rows=at.to(place.device), embeddings=embeddings.to(place.device))


def _require_equal_pages(got: tuple[Tensor, ...], expected: tuple[Tensor, ...], what: str) -> None:
    """Slots that nobody wrote are as they were, and those that were written hold the same."""
    for one, other in zip(got, expected, strict=True):
        if not bool((one.isnan() == other.isnan()).all()):
            raise CheckFailed(f"{what}: K/V were written to other slots.")
        far = (one - other).abs().nan_to_num()
        if float(far.max()) > 1e-3:
            slot = int(far.flatten(0, 1).flatten(1).amax(1).argmax())
            raise CheckFailed(f"{what}: slot {slot} holds other K/V, off by {float(far.max()):.2g}.")


@attrs.define(eq=False)
class _WithPages:
    """As `Beside`, and the pages of both are compared after every step."""

    beside: Beside

    def execute(self, plan: StepPlan) -> StepOutput:
        output = self.beside.execute(plan)
        tried, trusted = (_pages(stand.kv_store) for stand in (self.beside.tried, self.beside.trusted))
        _require_equal_pages(tried, trusted, f"step {plan.step}, of {len(plan.windows)} requests and {plan.rows} rows")
        return output


def _pages(kv_store: KVStore) -> tuple[Tensor, ...]:
    return kv_store.key_pages + kv_store.value_pages


@check(RunnerSubject)
def check_runner_computes_every_shape(subject: RunnerSubject, effort: Effort) -> None:
    """Steps that grow and shrink compute what the engine's eager runner computes of them, and write K/V where it does.

    Requests come and go, so that numbers of rows and requests come again after others. Pages that nobody wrote hold NaN
    and still do.

    Why: a runner that pads steps, keeps buffers or replays graphs is right the first time. What it did not fill anew is
    the step before's.
    Fix: fill every buffer for every step, also behind the last row: a padding row has slot -1 and sees [0, 0). Replay
    what was captured for exactly this shape, and hand on its first rows.
    """
    for shifted in (True, False):
        setting = Setting(shifted=shifted, accept=0.3)
        stand = Stand.of(subject.factory, setting)
        runner = _WithPages(Beside(stand, Stand.of(EagerRunner, setting)))
        serving = Serving(
            ContinuousScheduler, PagedKVCache, setting, num_pages=PAGES, budget=48, max_num_reqs=4, runner=runner
        )
        waiting = [ask(5), ask(8, first=2, seed=1), ask(8, first=7, seed=5), ask(3, first=1, seed=2), ask(6, seed=7)]
        for step in range(STEPS):
            if step % 2 == 0 and waiting:
                serving.add(waiting.pop())
            if not serving.live:
                break
            serving.step()
        else:
            raise CheckFailed(f"requests have not ended after {STEPS} steps")
        stand.runner.close()


@check(EngineSubject)
def check_static_steps_answer_as_eager_ones(subject: EngineSubject, effort: Effort) -> None:
    """Requests get the same answers whether decode steps run as they come or in few static shapes.

    Why: graphs are on wherever there is a GPU. What a strategy feeds besides tokens (embeddings, guidance, sparse
    caches) has to pass through their buffers or keep a step out of them.
    Fix: see check_static_steps_compute_the_same; a step that a shape cannot hold runs eagerly by itself.
    """
    with engines(subject) as made:
        asked = made.mixed()
        expected = tokens(serve(made.open(), asked))
        got = tokens(serve(made.open(executor=STATIC), asked))
    for each, answer, eager in zip(asked, got, expected, strict=True):
        if answer != eager:
            raise CheckFailed(
                f"a prompt of {len(each.prompt)} tokens is answered {list(answer)} by steps of static shape, and "
                f"{list(eager)} by eager ones"
            )


CHECKS: tuple[AnyCheck, ...] = (
    check_static_steps_compute_the_same,
    check_runner_computes_every_shape,
    check_static_steps_answer_as_eager_ones,
)
