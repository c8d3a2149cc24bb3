"""Broken subjects for the checks of `diffulex_core.testing.checks.runners`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import attrs
import torch
from torch import Tensor

from diffulex_core.hidden_rows import HiddenRows
from diffulex_core.kv_store import KVStore
from diffulex_core.packing import PackedStep
from diffulex_core.placed import PlacedLayout
from diffulex_core.protocols import ModelRunner
from diffulex_core.runner import EagerRunner
from diffulex_core.testing.check import AnyCheck
from diffulex_core.testing.checks import runners
from diffulex_core.testing.subjects import RunnerSubject
from diffulex_core.types import Decision, StepOutput, StepPlan
from tests.conformance.mutant import Mutant


class NumbersThrough(EagerRunner):
    """Rows are numbered through from the beginning of the batch."""

    def __init__(self, *, model: Any, **given: Any) -> None:
        super().__init__(model=Shifted(model), **given)


class Shifted(torch.nn.Module):
    """A network that is told other positions."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.kv_geometry, self.vocab_size, self.windows = model.kv_geometry, model.vocab_size, model.windows

    def forward(self, ids: Tensor, positions: Tensor, ctx: Any) -> Tensor:
        hidden: Tensor = self.model(ids, torch.arange(len(positions)), ctx)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.model.logits(hidden)
        return logits


class MixesDecisionsUp(EagerRunner):
    """Decisions come back in another order than the windows."""

    def execute(self, plan: StepPlan) -> StepOutput:
        output = super().execute(plan)
        return attrs.evolve(output, decisions=tuple(reversed(output.decisions)))


class LosesTheLast(EagerRunner):
    """The last of several windows gets no decision."""

    def execute(self, plan: StepPlan) -> StepOutput:
        output = super().execute(plan)
        return attrs.evolve(output, decisions=output.decisions[: max(1, len(output.decisions) - 1)])


class AcceptsEverything(EagerRunner):
    """What the sampler refused is accepted all the same."""

    def execute(self, plan: StepPlan) -> StepOutput:
        output = super().execute(plan)
        return attrs.evolve(output, decisions=tuple(map(self.accepted, output.decisions)))

    def accepted(self, decision: Decision) -> Decision:
        return attrs.evolve(decision, accepted=decision.accepted | True)


class SeesOneBlock(EagerRunner):
    """Rows see nothing of what stands before their own block."""

    def __init__(self, *, pattern: Any, page_size: int, **given: Any) -> None:
        super().__init__(pattern=pattern, page_size=page_size, **given)
        self._size = page_size

    def _context(self, step: PackedStep, placed: PlacedLayout) -> Any:
        context = super()._context(step, placed)
        batches = tuple(self._narrowed(batch) for batch in context.batches)
        return attrs.evolve(context, batches=batches)

    def _narrowed(self, batch: Any) -> Any:
        starts = (batch.key_end - 1).clamp_min(0) // self._size * self._size
        runs = [attrs.evolve(run, key_start=(run.key_end - 1) // self._size * self._size) for run in batch.runs]
        return attrs.evolve(batch, key_start=starts.to(batch.key_start.dtype), runs=tuple(runs))


class ForgetsKeptRows(EagerRunner):
    """Rows that are kept for the next step come back as zeros."""

    def _head_input(self, hidden: Tensor, step: PackedStep) -> Tensor:
        chosen = super()._head_input(hidden, step)
        if step.carried:
            chosen[torch.from_numpy(step.head_rows < 0)] = 0
        return chosen


class SharesKeptRows(EagerRunner):
    """Rows that are kept by a request's id are kept by the class."""

    shared: ClassVar[HiddenRows] = HiddenRows()

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._kept = self.shared


class SharesPages(EagerRunner):
    """The first runner's pages are everybody's."""

    pages: ClassVar[list[KVStore]] = []

    def __init__(self, *, kv_store: KVStore, **given: Any) -> None:
        if not self.pages:
            self.pages.append(kv_store)
        super().__init__(kv_store=self.pages[0], **given)

    def close(self) -> None:
        super().close()
        self.pages.clear()


class KeepsItsPages(EagerRunner):
    """Closing frees nothing."""

    def close(self) -> None:
        assert self._model is not None


class KeepsThemInAList(EagerRunner):
    """The pages stand in a list of the class, too."""

    everything: ClassVar[list[KVStore]] = []

    def __init__(self, *, kv_store: KVStore, **given: Any) -> None:
        super().__init__(kv_store=kv_store, **given)
        self.everything.append(kv_store)


def _mutant(check: AnyCheck, kind: Callable[..., ModelRunner]) -> Mutant:
    name = (kind.__doc__ or "").strip().rstrip(".")
    return Mutant(name=name, check=check, subject=lambda: RunnerSubject(name="mutant", factory=kind))


_TABLE: tuple[tuple[AnyCheck, tuple[Callable[..., ModelRunner], ...]], ...] = (
    (
        runners.check_runner_executes_plans,
        (
            NumbersThrough, MixesDecisionsUp, LosesTheLast, AcceptsEverything, SeesOneBlock, ForgetsKeptRows,
        ),
    ),
    (runners.check_runners_share_nothing, (SharesKeptRows, SharesPages)),
    (runners.check_runners_close, (KeepsItsPages, KeepsThemInAList)),
)  # fmt: skip

MUTANTS: tuple[Mutant, ...] = tuple(_mutant(check, kind) for check, kinds in _TABLE for kind in kinds)
