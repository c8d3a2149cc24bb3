"""Runners, executors, sources and kernels that are right pass the checks of their kind, whichever way they go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import pytest
from torch import Tensor

from diffulex_core.distributed.spawned import SpawnedExecutor
from diffulex_core.kernels.layers.twins import TorchLayers
from diffulex_core.kernels.moe.naive import NaiveExperts
from diffulex_core.layers.moe import Activation
from diffulex_core.protocols import ModelRunner
from diffulex_core.runner import EagerRunner
from diffulex_core.sampling.facts import Facts, Wanted, facts_of
from diffulex_core.testing import (
    ExecutorConformance,
    ExpertsConformance,
    LayerKernelsConformance,
    ModelSourceConformance,
    RunnerConformance,
)
from diffulex_core.types import Decision, StepOutput, StepPlan
from diffulex_tiny.source import TinySource


class WindowByWindow:
    """Runs a forward for each window, so that nothing is ever beside another request."""

    def __init__(self, **given: Any) -> None:
        self._runner = EagerRunner(**given)

    def execute(self, plan: StepPlan) -> StepOutput:
        decisions: list[Decision] = []
        rows = 0
        for number, window in enumerate(plan.windows):
            part = attrs.evolve(plan, windows=(window,), ended=() if number else plan.ended)
            output = self._runner.execute(part)
            decisions += output.decisions
            rows += output.head_rows
        return StepOutput(decisions=tuple(decisions), head_rows=rows)

    def close(self) -> None:
        self._runner.close()


class TestARunnerThatGoesWindowByWindow(RunnerConformance):
    @pytest.fixture
    def runner_factory(self) -> Callable[..., ModelRunner]:
        return WindowByWindow


class TestAKernelThatGoesSlotBySlot(ExpertsConformance):
    @pytest.fixture
    def kernel_factory(self) -> Callable[[], NaiveExperts]:
        return NaiveExperts


class InDoublePrecision(TorchLayers):
    """Layer kernels that round once, at the end."""

    def normed(self, x: Tensor, weight: Tensor | None, eps: float, *, wide: bool = False) -> Tensor:
        found = super().normed(x.double(), None if weight is None else weight.double(), eps)
        return found.to(x.dtype)

    def gated(self, packed: Tensor, activation: Activation) -> Tensor:
        return super().gated(packed.double(), activation).to(packed.dtype)

    def blend(self, table: Tensor, ids: Tensor, weights: Tensor, match_norm: Tensor) -> Tensor:
        return super().blend(table.double(), ids, weights.double(), match_norm).to(table.dtype)

    def select(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, wanted: Wanted) -> Facts:
        logits = hidden.double() @ weight.double().T + (0.0 if bias is None else bias.double())
        return facts_of(logits.to(hidden.dtype), wanted)


class TestLayerKernelsInDoublePrecision(LayerKernelsConformance):
    @pytest.fixture
    def kernels_factory(self) -> Callable[[], InDoublePrecision]:
        return InDoublePrecision


class TestTheSourceOfEmbeddedCheckpoints(ModelSourceConformance):
    @pytest.fixture
    def source_factory(self) -> Callable[[], TinySource]:
        return TinySource

    @pytest.fixture
    def known_names(self) -> Sequence[str]:
        return ("tiny/llada", "tiny/llada2")


class TestAProcessOfItsOwn(ExecutorConformance):
    @pytest.fixture
    def executor_factory(self) -> type[SpawnedExecutor]:
        return SpawnedExecutor
