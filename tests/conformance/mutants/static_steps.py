"""Broken subjects for the checks of `diffulex_core.testing.checks.static_steps`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import attrs
from torch import Tensor

from diffulex_core.context import ForwardContext, SoftInputs
from diffulex_core.graphs import Bucket, Rerun, StaticForward
from diffulex_core.graphs.buffers import StaticInputs
from diffulex_core.graphs.capture import Replay
from diffulex_core.layers.decoder import Decoder
from diffulex_core.plugin import Capability
from diffulex_core.protocols import DiffusionModel
from diffulex_core.runner import EagerRunner
from diffulex_core.testing.checks import static_steps
from diffulex_core.testing.reference import plugin as reference
from diffulex_core.testing.static_runner import LIMITS
from diffulex_core.testing.subjects import RunnerSubject
from diffulex_core.types import HowRun, StepPlan
from tests.conformance import broken_engines as broken
from tests.conformance.broken_families import decoder, family, host
from tests.conformance.broken_networks import CountsRows, RemembersByShape
from tests.conformance.mutant import Mutant
from tests.conformance.mutants.engine import by_network


class Forgetful(StaticInputs):
    """Some of what the first step of a shape filled in stays."""

    kept: list[Tensor] | None = None

    def fill(self, input_ids: Tensor, positions: Tensor, ctx: ForwardContext) -> None:
        super().fill(input_ids, positions, ctx)
        if self.kept is None:
            self.kept = [each.clone() for each in self.stays()]
        for mine, old in zip(self.stays(), self.kept, strict=True):
            mine.copy_(old)

    def stays(self) -> list[Tensor]:
        return []


class KeepsKeys(Forgetful):
    """Which keys rows see is what the first step of a shape saw."""

    def stays(self) -> list[Tensor]:
        return list(self._key_end)


class KeepsTables(Forgetful):
    """Page tables are those of the first step of a shape."""

    def stays(self) -> list[Tensor]:
        return [self._page_tables]


class LeavesOldRows(StaticInputs):
    """Rows behind the last one are those of the step before."""

    def fill(self, input_ids: Tensor, positions: Tensor, ctx: ForwardContext) -> None:
        self._blank.copy_(self._numbers)
        super().fill(input_ids, positions, ctx)


class StoresPadding(StaticInputs):
    """Padding rows write to page 0."""

    def __init__(self, bucket: Bucket, like: ForwardContext, **given: Any) -> None:
        super().__init__(bucket, like, **given)
        self._blank.clamp_(min=0)


class OtherBuffers(StaticForward):
    """Fills other buffers."""

    kind: type[StaticInputs] = StaticInputs

    def _buffers(self, bucket: Bucket, ctx: ForwardContext) -> StaticInputs:
        return self.kind(bucket, ctx, pages=LIMITS.pages, live_runs=True)


def _with_buffers(kind: type[StaticInputs]) -> type[StaticForward]:
    return type(kind.__name__, (OtherBuffers,), {"kind": kind, "__doc__": kind.__doc__})


class BakesPositions(StaticForward):
    """A graph holds the positions of its capture."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.baked: dict[StaticInputs, Tensor] = {}

    def _run(self, inputs: StaticInputs) -> Tensor:
        positions = self.baked.setdefault(inputs, inputs.positions.clone())
        return self._static(inputs.input_ids, positions, inputs.context())


class HandsOnOtherRows(StaticForward):
    """Padding is taken to stand before the rows, not behind them."""

    def __call__(
        self, plan: StepPlan, input_ids: Tensor, positions: Tensor, ctx: ForwardContext
    ) -> tuple[Tensor, HowRun]:
        hidden, how = super().__call__(plan, input_ids, positions, ctx)
        bucket = self._bucket(plan, ctx)
        return hidden.roll(0 if bucket is None else bucket.rows - len(hidden), dims=0), how


class ReplaysTheLatest(Rerun):
    """Whatever the shape, what was captured last is replayed."""

    def capture(self, run: Callable[[], Tensor]) -> Replay:
        self.latest = run

        def replay() -> Tensor:
            rows = len(run())
            hidden = self.latest()
            return hidden.repeat(-(-rows // len(hidden)), 1)[:rows]

        return replay


class ReplaysNothing(Rerun):
    """A replay hands on what the capture computed."""

    def capture(self, run: Callable[[], Tensor]) -> Replay:
        out = run().clone()
        return lambda: out


class RotatesByAddress(Decoder):
    """Positions that stand at the same address are taken to be the same."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.known: dict[int, Tensor] = {}

    def forward(self, input_ids: Tensor, positions: Tensor, ctx: ForwardContext) -> Tensor:
        return super().forward(input_ids, self.known.setdefault(positions.data_ptr(), positions.clone()), ctx)


class PutsEmbeddingsByHand(Decoder):
    """Embeddings are put at `ctx.soft.rows`, wherever they count."""

    def forward(self, input_ids: Tensor, positions: Tensor, ctx: ForwardContext) -> Tensor:
        if ctx.soft is not None:
            ctx = attrs.evolve(ctx, soft=SoftInputs(rows=ctx.soft.rows, embeddings=ctx.soft.embeddings))
        return super().forward(input_ids, positions, ctx)


def _runner(kind: type[StaticForward], graphs: type[Rerun]) -> Callable[..., EagerRunner]:
    def make(*, model: DiffusionModel, **given: Any) -> EagerRunner:
        forward = kind(network=model, graphs=graphs(), limits=LIMITS)
        return EagerRunner(model=model, forward=forward, **given)

    return make


def _by_runner(
    broken: type[Any], *, forward: type[StaticForward] = StaticForward, graphs: type[Rerun] = Rerun
) -> Mutant:
    return Mutant(
        name=_name(broken),
        check=static_steps.check_runner_computes_every_shape,
        subject=lambda: RunnerSubject(name="mutant", factory=_runner(forward, graphs)),
    )


def _by_family(kind: type[Decoder]) -> Mutant:
    provided = host().models.get(reference.FAMILY).provides | {Capability.SOFT_INPUTS}
    return Mutant(
        name=_name(kind),
        check=static_steps.check_static_steps_compute_the_same,
        subject=partial(family, build=decoder(kind), provides=provided),
    )


def _name(broken: type[Any]) -> str:
    return (broken.__doc__ or "").strip().rstrip(".")


MUTANTS: tuple[Mutant, ...] = (
    *(_by_family(kind) for kind in (RotatesByAddress, PutsEmbeddingsByHand, RemembersByShape, CountsRows)),
    *(_by_runner(kind, forward=_with_buffers(kind)) for kind in (KeepsKeys, KeepsTables, LeavesOldRows, StoresPadding)),
    *(_by_runner(kind, forward=kind) for kind in (BakesPositions, HandsOnOtherRows)),
    *(_by_runner(kind, graphs=kind) for kind in (ReplaysTheLatest, ReplaysNothing)),
    by_network(static_steps.check_static_steps_answer_as_eager_ones, broken.RotatesByAddress),
)
