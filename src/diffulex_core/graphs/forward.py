"""The network's part of a step, either as it comes or in one of few static shapes."""

from __future__ import annotations

import logging
from typing import Protocol

import attrs
import torch
from torch import Tensor

from diffulex_core.columns import Windows
from diffulex_core.context import ForwardContext
from diffulex_core.graphs.buckets import Bucket, Limits
from diffulex_core.graphs.buffers import StaticInputs
from diffulex_core.graphs.capture import Graphs, NotCapturable, Replay
from diffulex_core.types import HowRun, StepPlan

_log = logging.getLogger(__name__)
_CAPTURED: HowRun = "captured"
_REPLAYED: HowRun = "replayed"


class Network(Protocol):
    """A `DiffusionModel`, as far as forwards need it, or what was compiled of it."""

    def __call__(self, input_ids: Tensor, positions: Tensor, ctx: ForwardContext, /) -> Tensor:
        """[rows] ids and positions -> [rows, hidden]."""
        ...


class Forward(Protocol):
    """Runs the network over the rows of a step, and says how."""

    def __call__(
        self, plan: StepPlan, input_ids: Tensor, positions: Tensor, ctx: ForwardContext
    ) -> tuple[Tensor, HowRun]:
        """[rows] ids and positions -> [rows, hidden], which the next call may overwrite."""
        ...


@attrs.frozen(eq=False)
class EagerForward:
    """Calls the network."""

    network: Network

    def __call__(
        self, plan: StepPlan, input_ids: Tensor, positions: Tensor, ctx: ForwardContext
    ) -> tuple[Tensor, HowRun]:
        """See `Forward`."""
        return self.network(input_ids, positions, ctx), "eager"


@attrs.frozen(eq=False)
class _Captured:
    inputs: StaticInputs
    replay: Replay


class StaticForward:
    """Fills a step into static buffers of the next larger shape and replays what was captured for that shape.

    A shape is captured when a step first has it. Steps that are too large, and those of which a cache policy observes
    layers, run eagerly. So does every step once the network or its kernels turn out to do what a graph cannot hold,
    which is logged. Nothing that was captured may move: weights, pages and static buffers stay where they are.
    """

    def __init__(self, *, network: Network, graphs: Graphs, limits: Limits, captured: Network | None = None) -> None:
        """
        Args:
            network: what eager steps call.
            graphs: what captures.
            limits: the largest static shapes.
            captured: what is captured instead of `network`, such as a compiled form of it.
        """
        self._network, self._graphs, self._limits = network, graphs, limits
        self._static = network if captured is None else captured
        self._captured: dict[Bucket, _Captured] = {}
        self._against: str | None = None

    @property
    def buckets(self) -> frozenset[Bucket]:
        """The shapes that have been captured."""
        return frozenset(self._captured)

    def __call__(
        self, plan: StepPlan, input_ids: Tensor, positions: Tensor, ctx: ForwardContext
    ) -> tuple[Tensor, HowRun]:
        """See `Forward`."""
        bucket = self._bucket(plan, ctx)
        if bucket is None:
            return self._network(input_ids, positions, ctx), "eager"
        found, how = self._captured.get(bucket), _REPLAYED
        if found is None:
            found, how = self._capture(bucket, input_ids, positions, ctx), _CAPTURED
        if found is None:
            return self._network(input_ids, positions, ctx), "eager"
        assert found.inputs.serves(ctx), "the pages of a captured step stay where they are"
        found.inputs.fill(input_ids, positions, ctx)
        return found.replay()[: len(input_ids)], how

    def _bucket(self, plan: StepPlan, ctx: ForwardContext) -> Bucket | None:
        if self._against is not None or ctx.refreshes:
            return None
        sequences, pages = ctx.batches[0].page_tables.shape
        return self._limits.bucket(
            rows=len(ctx.slots),
            sequences=sequences,
            pages=pages,
            prefill=bool(Windows.of(plan.windows).spans.catch_up.any()),
            soft=ctx.soft is not None,
        )

    def _buffers(self, bucket: Bucket, ctx: ForwardContext) -> StaticInputs:
        return StaticInputs(bucket, ctx, pages=self._limits.pages, live_runs=self._graphs.runs_host)

    def _run(self, inputs: StaticInputs) -> Tensor:
        return self._static(inputs.input_ids, inputs.positions, inputs.context())

    def _capture(self, bucket: Bucket, input_ids: Tensor, positions: Tensor, ctx: ForwardContext) -> _Captured | None:
        inputs = self._buffers(bucket, ctx)
        inputs.fill(input_ids, positions, ctx)
        try:
            replay = self._graphs.capture(lambda: self._run(inputs))
        except NotCapturable as error:
            self._against = str(error)
            _log.warning("Steps are not captured but run eagerly, because %s.", self._against)
            return None
        except torch.OutOfMemoryError:
            self._limits = attrs.evolve(
                self._limits,
                decode_rows=min(self._limits.decode_rows, bucket.rows - 1),
                prefill_rows=min(self._limits.prefill_rows, bucket.rows - 1),
            )
            _log.warning("There is no memory to capture a step of %d rows; such steps run eagerly.", bucket.rows)
            return None
        found = self._captured[bucket] = _Captured(inputs, replay)
        _log.info(
            "Captured a step of %d rows and %d sequences; %d shapes so far.",
            bucket.rows,
            bucket.sequences,
            len(self._captured),
        )
        return found
