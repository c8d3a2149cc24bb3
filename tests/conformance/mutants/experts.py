"""Broken subjects for the checks of `diffulex_core.testing.checks.experts`."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import attrs
import torch
from torch import Tensor

from diffulex_core.kernels.case import KernelCase
from diffulex_core.kernels.moe import ExpertsKernel
from diffulex_core.kernels.moe.grouped import TorchExperts
from diffulex_core.kernels.moe.naive import NaiveExperts
from diffulex_core.layers.moe.spec import Activation
from diffulex_core.testing.check import AnyCheck
from diffulex_core.testing.checks import experts
from diffulex_core.testing.subjects import ExpertsSubject
from tests.conformance.mutant import Mutant


@attrs.frozen
class Call:
    """The arguments of a kernel."""

    x: Tensor
    ids: Tensor
    weights: Tensor
    w13: Tensor
    w2: Tensor
    activation: Activation

    def done(self, **changes: Any) -> Tensor:
        """What a sound kernel makes of them, with some of them changed."""
        return TorchExperts()(*attrs.astuple(attrs.evolve(self, **changes), recurse=False))


class Changed(NaiveExperts):
    """Sound; mutants replace one method."""

    def __call__(
        self, x: Tensor, ids: Tensor, weights: Tensor, w13: Tensor, w2: Tensor, activation: Activation
    ) -> Tensor:
        return self.compute(Call(x, ids, weights, w13, w2, activation))

    def compute(self, call: Call) -> Tensor:
        return call.done()


class SwapsTheHalves(Changed):
    """The gate is taken for the up projection."""

    def compute(self, call: Call) -> Tensor:
        return call.done(w13=torch.cat(call.w13.chunk(2, dim=1)[::-1], dim=1))


class KnowsOneActivation(Changed):
    """Every activation is taken for silu."""

    def compute(self, call: Call) -> Tensor:
        return call.done(activation="silu")


class Normalises(Changed):
    """The weights of a row are scaled to a sum of one."""

    def compute(self, call: Call) -> Tensor:
        total = call.weights.sum(1, keepdim=True).clamp_min(1e-9)
        return call.done(weights=call.weights / total)


class TakesTheLast(Changed):
    """A slot without an expert gets the last one."""

    def compute(self, call: Call) -> Tensor:
        return call.done(ids=call.ids.where(call.ids >= 0, len(call.w2) - 1))


class GoesByAddress(Changed):
    """Rows are taken to stand side by side in memory."""

    def compute(self, call: Call) -> Tensor:
        return call.done(x=call.x.as_strided(call.x.shape, (call.x.shape[1], 1)))


class NeedsRows(Changed):
    """A batch of no rows is an error."""

    def compute(self, call: Call) -> Tensor:
        call.x[0].max()
        return call.done()


class ReturnsFloats(Changed):
    """The output is float32, whatever the input is."""

    def compute(self, call: Call) -> Tensor:
        return call.done().float()


class ForgetsTheLastTile(Changed):
    """Rows beyond a multiple of 16 are computed only up to the 64th."""

    def compute(self, call: Call) -> Tensor:
        out = call.done()
        out[64:] = 0
        return out


class MultipliesByZero(Changed):
    """A slot without a weight is computed, and its output multiplied with the weight."""

    def compute(self, call: Call) -> Tensor:
        computed = call.done(ids=call.ids.clamp_min(0), weights=torch.ones_like(call.weights))
        return call.done() + 0 * computed


class ComputesAll(Changed):
    """Every expert computes every row, and what nobody chose is multiplied with zero."""

    def compute(self, call: Call) -> Tensor:
        nobody = sum(float(expert.float().sum()) for expert in call.w2) * 0
        return call.done() + nobody


class ScalesInPlace(Changed):
    """The weights are scaled in place and not scaled back."""

    def compute(self, call: Call) -> Tensor:
        out = call.done()
        call.weights.mul_(0.5)
        return out


class AddsAsItComes(Changed):
    """The slots of a row are added in whichever order they are done."""

    def compute(self, call: Call) -> Tensor:
        order = list(range(call.ids.shape[1]))
        random.shuffle(order)
        return call.done(ids=call.ids[:, order], weights=call.weights[:, order])


class KeepsItsOutput(Changed):
    """The output is memory of the class, which the next call fills again."""

    memory: ClassVar[dict[tuple[torch.dtype, int], Tensor]] = {}

    def compute(self, call: Call) -> Tensor:
        out = call.done()
        kept = self.memory.setdefault((out.dtype, out.shape[1]), out.new_empty(512, out.shape[1]))
        kept[: len(out)] = out
        return kept[: len(out)]


class SaysYesAndNo(Changed):
    """What it cannot serve depends on how often it was asked."""

    asked: ClassVar[list[int]] = []

    def reasons(self, case: KernelCase) -> list[str]:
        self.asked.append(1)
        return ["it is tired"] if len(self.asked) % 2 else []


class SaysItInOne(Changed):
    """The reasons are one text."""

    def reasons(self, case: KernelCase) -> Sequence[str]:  # type: ignore[override]
        return "" if case.device_type == "cpu" else "it runs on the CPU only"


class NeedsADevice(Changed):
    """It looks for a device that may not be there."""

    def reasons(self, case: KernelCase) -> list[str]:
        if case.device_type != "cpu":
            torch.cuda.get_device_capability(99)
        return []


def _mutant(check: AnyCheck, kind: Callable[[], ExpertsKernel]) -> Mutant:
    name = (kind.__doc__ or "").strip().rstrip(".")
    return Mutant(name=name, check=check, subject=lambda: ExpertsSubject(name="mutant", factory=kind))


_TABLE: tuple[tuple[AnyCheck, tuple[type[Changed], ...]], ...] = (
    (experts.check_experts_say_whom_they_serve, (SaysYesAndNo, SaysItInOne, NeedsADevice)),
    (
        experts.check_experts_compute_their_definition,
        (
            SwapsTheHalves, KnowsOneActivation, Normalises, TakesTheLast, GoesByAddress, NeedsRows, ReturnsFloats,
            ForgetsTheLastTile,
        ),
    ),
    (experts.check_idle_experts_take_no_part, (MultipliesByZero, ComputesAll)),
    (experts.check_experts_depend_on_their_arguments_only, (ScalesInPlace, AddsAsItComes, KeepsItsOutput)),
)  # fmt: skip

MUTANTS: tuple[Mutant, ...] = tuple(_mutant(check, kind) for check, kinds in _TABLE for kind in kinds)
