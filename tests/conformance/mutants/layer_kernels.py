"""Broken subjects for the checks of `diffulex_core.testing.checks.layer_kernels`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import attrs
import torch
from torch import Tensor

from diffulex_core.kernels.case import KernelCase
from diffulex_core.kernels.layers.twins import TorchLayers
from diffulex_core.layers.moe.spec import Activation, MoESpec
from diffulex_core.layers.rope import Rotation
from diffulex_core.sampling.facts import Facts, Wanted
from diffulex_core.testing.check import AnyCheck
from diffulex_core.testing.checks import layer_kernels as checks
from diffulex_core.testing.subjects import LayerKernelsSubject
from tests.conformance.mutant import Mutant


class IsTired(TorchLayers):
    """What they cannot serve depends on how often they were asked."""

    asked: ClassVar[list[int]] = []

    def reasons(self, case: KernelCase) -> list[str]:
        self.asked.append(1)
        return ["they are tired"] if len(self.asked) % 2 else []


class SaysItInOne(TorchLayers):
    """The reasons are one text."""

    def reasons(self, case: KernelCase) -> Sequence[str]:  # type: ignore[override]
        return "" if case.device_type == "cpu" else "they run on the CPU only"


class NormsWhatWasThere(TorchLayers):
    """The norm of a sum is that of its first part."""

    def add_and_norm(
        self, x: Tensor, addend: Tensor, weight: Tensor, eps: float, **named: Any
    ) -> tuple[Tensor, Tensor]:
        return x + addend, self.normed(x, weight, eps, **named)


class ForgetsEpsilon(TorchLayers):
    """Nothing is added to the mean square."""

    def norm_and_add(self, x: Tensor, addend: Tensor, weight: Tensor, eps: float, **named: Any) -> Tensor:
        return super().norm_and_add(x, addend, weight, 0.0, **named)


class GoesByAddress(TorchLayers):
    """Rows are taken to stand side by side in memory."""

    def normed(self, x: Tensor, weight: Tensor | None, eps: float, **named: Any) -> Tensor:
        return super().normed(x.as_strided(x.shape, (x.shape[1], 1)), weight, eps, **named)


class SwapsTheHalves(TorchLayers):
    """The gate is taken for the up projection."""

    def gated(self, packed: Tensor, activation: Activation) -> Tensor:
        return super().gated(torch.cat(packed.chunk(2, dim=1)[::-1], dim=1), activation)


class KnowsOneActivation(TorchLayers):
    """Every activation is taken for silu."""

    def gated(self, packed: Tensor, activation: Activation) -> Tensor:
        return super().gated(packed, "silu")


class TurnsBackwards(TorchLayers):
    """Heads are turned the other way round."""

    def turn_and_store(self, *heads: Tensor, rotation: Rotation, **named: Any) -> tuple[Tensor, Tensor, Tensor]:
        return super().turn_and_store(*heads, rotation=attrs.evolve(rotation, sin=-rotation.sin), **named)


class TurnsByTheFirstRow(TorchLayers):
    """All rows are turned by the first one's angles."""

    def turn_and_store(self, *heads: Tensor, rotation: Rotation, **named: Any) -> tuple[Tensor, Tensor, Tensor]:
        first = attrs.evolve(rotation, cos=rotation.cos[:1], sin=rotation.sin[:1]) if len(heads[0]) else rotation
        return super().turn_and_store(*heads, rotation=first, **named)


class LeavesValues(TorchLayers):
    """Values are never normalised."""

    def turn_and_store(self, *heads: Tensor, norms: Any, **named: Any) -> tuple[Tensor, Tensor, Tensor]:
        return super().turn_and_store(*heads, norms=norms and attrs.evolve(norms, values=False), **named)


class StoresEveryRow(TorchLayers):
    """Rows that store nothing store in the last slot."""

    def turn_and_store(self, *heads: Tensor, slots: Tensor, **named: Any) -> tuple[Tensor, Tensor, Tensor]:
        last = named["key_pages"].flatten(0, 1).shape[0] - 1
        return super().turn_and_store(*heads, slots=slots.where(slots >= 0, last), **named)


class StoresBesideIt(TorchLayers):
    """The slot behind a row's slot gets its key, too."""

    def turn_and_store(self, *heads: Tensor, slots: Tensor, **named: Any) -> tuple[Tensor, Tensor, Tensor]:
        found = super().turn_and_store(*heads, slots=slots, **named)
        store = named["key_pages"].flatten(0, 1)
        for row, slot in enumerate(slots.tolist()):
            if 0 <= slot < len(store) - 1 and slot + 1 not in slots.tolist():
                store[slot + 1] = found[1][row]
        return found


class StoresAsProjected(TorchLayers):
    """Keys are stored before they are turned."""

    def turn_and_store(self, *heads: Tensor, slots: Tensor, **named: Any) -> tuple[Tensor, Tensor, Tensor]:
        found = super().turn_and_store(*heads, slots=slots, **named)
        named["key_pages"].flatten(0, 1)[slots[slots >= 0]] = heads[1][slots >= 0]
        return found


class TakesTheLastOfEquals(TorchLayers):
    """Of experts with one score the highest id comes first."""

    def route(self, logits: Tensor, bias: Tensor | None, spec: MoESpec) -> tuple[Tensor, Tensor]:
        nudge = torch.arange(spec.num_experts) * 1e-6
        ids, _ = super().route(logits + nudge, bias, spec)
        return ids, super().route(logits, bias, spec)[1]


class WeighsTheBias(TorchLayers):
    """The bias that experts are chosen with is in their weights."""

    def route(self, logits: Tensor, bias: Tensor | None, spec: MoESpec) -> tuple[Tensor, Tensor]:
        ids, weights = super().route(logits, bias, spec)
        return ids, weights if bias is None else weights + bias[ids.long()]


class SeesEveryGroup(TorchLayers):
    """Experts of all groups may be chosen."""

    def route(self, logits: Tensor, bias: Tensor | None, spec: MoESpec) -> tuple[Tensor, Tensor]:
        return super().route(logits, bias, attrs.evolve(spec, num_groups=1, groups_kept=1))


class ForgetsLengths(TorchLayers):
    """Sums are as long as they come out."""

    def blend(self, table: Tensor, ids: Tensor, weights: Tensor, match_norm: Tensor) -> Tensor:
        return super().blend(table, ids, weights, torch.zeros_like(match_norm))


class WeighsAlike(TorchLayers):
    """All embeddings of a row count alike."""

    def blend(self, table: Tensor, ids: Tensor, weights: Tensor, match_norm: Tensor) -> Tensor:
        return super().blend(table, ids, weights.mean(1, keepdim=True).expand_as(weights), match_norm)


class Selects(TorchLayers):
    """Sound; mutants replace `told`."""

    def select(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, wanted: Wanted) -> Facts:
        return self.told(super().select, hidden, weight, bias, wanted)

    def told(self, sound: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, wanted: Wanted) -> Facts:
        facts: Facts = sound(hidden, weight, bias, wanted)
        return facts


class ChoosesTheExcluded(Selects):
    """Columns that are never chosen are chosen."""

    def told(self, sound: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, wanted: Wanted) -> Facts:
        facts: Facts = sound(hidden, weight, bias, attrs.evolve(wanted, excluded=()))
        return facts


class ReadsPadding(Selects):
    """Columns of padding count."""

    def told(self, sound: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, wanted: Wanted) -> Facts:
        facts: Facts = sound(hidden, weight.nan_to_num(), bias, attrs.evolve(wanted, columns=len(weight)))
        return facts


class TakesTheFirstOfEquals(Selects):
    """Of equal logits the lowest column is told."""

    def told(self, sound: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, wanted: Wanted) -> Facts:
        facts: Facts = sound(hidden, weight, bias, attrs.evolve(wanted, top=wanted.columns))
        assert facts.top is not None
        assert facts.top_columns is not None
        first = facts.top_columns.where(facts.top == facts.best[:, None], wanted.columns).amin(1)
        few = slice(wanted.top)
        return attrs.evolve(
            facts,
            column=first.where(facts.best > -torch.inf, 0),
            top=facts.top[:, few] if wanted.top else None,
            top_columns=facts.top_columns[:, few] if wanted.top else None,
        )


class LowersTheWatched(Selects):
    """A watched column that is lowered is told as lowered."""

    def told(self, sound: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, wanted: Wanted) -> Facts:
        facts: Facts = sound(hidden, weight, bias, wanted)
        if facts.watched is None or wanted.lowered is None or wanted.watched is None or wanted.penalty is None:
            return facts
        same = torch.from_numpy((wanted.lowered[:, None] == wanted.watched) * wanted.penalty[:, None])
        return attrs.evolve(facts, watched=facts.watched - same)


class TellsFewer(Selects):
    """Of the largest values all but the first are told of the column before."""

    def told(self, sound: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, wanted: Wanted) -> Facts:
        facts: Facts = sound(hidden, weight, bias, wanted)
        if facts.top is None:
            return facts
        return attrs.evolve(facts, top=torch.cat((facts.top[:, :1], facts.top[:, :-1]), dim=1))


class SumsInSinglePrecision(Selects):
    """The logarithm of the sum is a float32."""

    def told(self, sound: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, wanted: Wanted) -> Facts:
        facts: Facts = sound(hidden, weight, bias, wanted)
        return attrs.evolve(facts, log_sum=facts.log_sum.float().double())


class SumsWithoutMaximum(Selects):
    """Exponentials are summed as they are, up to what a float64 holds."""

    def told(self, sound: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, wanted: Wanted) -> Facts:
        facts: Facts = sound(hidden, weight, bias, wanted)
        return attrs.evolve(facts, log_sum=facts.log_sum.exp().log())


class Repairs(Selects):
    """Numbers that are none are taken for zero."""

    def told(self, sound: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, wanted: Wanted) -> Facts:
        facts: Facts = sound(hidden.nan_to_num(0.0, 0.0, 0.0), weight, bias, wanted)
        return facts


class LooksAtAll(TorchLayers):
    """The largest logit of all rows is subtracted from every one."""

    def route(self, logits: Tensor, bias: Tensor | None, spec: MoESpec) -> tuple[Tensor, Tensor]:
        return super().route(logits - logits.amax() * (spec.router == "softmax"), bias, spec)


class MultipliesByZero(TorchLayers):
    """A row's neighbour is added with weight zero."""

    def normed(self, x: Tensor, weight: Tensor | None, eps: float, **named: Any) -> Tensor:
        return super().normed(x + 0 * x.roll(1, 0), weight, eps, **named)


class ScalesInPlace(TorchLayers):
    """The rows that come in are changed."""

    def add_and_norm(
        self, x: Tensor, addend: Tensor, weight: Tensor, eps: float, **named: Any
    ) -> tuple[Tensor, Tensor]:
        found = super().add_and_norm(x, addend, weight, eps, **named)
        x.copy_(found[0])
        return found


class KeepsItsOutput(TorchLayers):
    """The output is memory of the class, which the next call fills again."""

    memory: ClassVar[dict[tuple[torch.dtype, int], Tensor]] = {}

    def gated(self, packed: Tensor, activation: Activation) -> Tensor:
        out = super().gated(packed, activation)
        kept = self.memory.setdefault((out.dtype, out.shape[1]), out.new_empty(64, out.shape[1]))
        kept[: len(out)] = out
        return kept[: len(out)]


_TABLE: tuple[tuple[AnyCheck, tuple[type[TorchLayers], ...]], ...] = (
    (checks.check_layer_kernels_say_whom_they_serve, (IsTired, SaysItInOne)),
    (checks.check_norms_are_those_of_each_row, (NormsWhatWasThere, ForgetsEpsilon, GoesByAddress)),
    (checks.check_gates_are_activated_and_multiplied, (SwapsTheHalves, KnowsOneActivation)),
    (checks.check_heads_are_normalised_and_turned, (TurnsBackwards, TurnsByTheFirstRow, LeavesValues)),
    (checks.check_keys_and_values_go_to_their_slots, (StoresEveryRow, StoresBesideIt, StoresAsProjected)),
    (
        checks.check_tokens_are_routed_to_their_best_experts,
        (TakesTheLastOfEquals, WeighsTheBias, SeesEveryGroup),
    ),
    (checks.check_embeddings_are_blended, (ForgetsLengths, WeighsAlike)),
    (
        checks.check_heads_select_what_logits_would_tell,
        (ChoosesTheExcluded, ReadsPadding, TakesTheFirstOfEquals, LowersTheWatched, TellsFewer),
    ),
    (checks.check_selection_keeps_its_precision, (SumsInSinglePrecision, SumsWithoutMaximum)),
    (checks.check_selection_tells_rows_that_are_not_finite, (Repairs,)),
    (checks.check_rows_of_layer_kernels_do_not_meet, (LooksAtAll, MultipliesByZero)),
    (checks.check_layer_kernels_depend_on_their_arguments_only, (ScalesInPlace, KeepsItsOutput)),
)


def _mutant(check: AnyCheck, kind: type[TorchLayers]) -> Mutant:
    name = (kind.__doc__ or "").strip().rstrip(".")
    return Mutant(name=name, check=check, subject=lambda: LayerKernelsSubject(name="mutant", factory=kind))


MUTANTS: tuple[Mutant, ...] = tuple(_mutant(check, kind) for check, kinds in _TABLE for kind in kinds)
