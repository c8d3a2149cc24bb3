"""Broken subjects for the checks of `diffulex_core.testing.checks.sampler_facts`."""

from __future__ import annotations

import attrs
import numpy as np
from torch import Tensor

from diffulex_core.sampling import PackedSampler
from diffulex_core.sampling.facts import Facts, Wanted
from diffulex_core.testing.checks import sampler_facts as checks
from diffulex_core.testing.subjects import SamplerSubject
from diffulex_core.types import BoolArray, SamplingBatch
from tests.conformance.mutant import Mutant


class SaysYes(PackedSampler):
    """Facts are said to suffice for every row."""

    def selectable(self, batch: SamplingBatch) -> BoolArray:
        return np.ones(len(batch.positions), dtype=np.bool_)


class LowersNothing(PackedSampler):
    """A discouraged token is not lowered where facts decide."""

    def wanted(self, columns: int, batch: SamplingBatch) -> Wanted:
        return attrs.evolve(super().wanted(columns, batch), lowered=None, penalty=None)


class ExcludesNothing(PackedSampler):
    """Ids that may never be chosen count where facts decide."""

    def wanted(self, columns: int, batch: SamplingBatch) -> Wanted:
        return attrs.evolve(super().wanted(columns, batch), excluded=())


class DrawsByPlace(PackedSampler):
    """Draws by facts go by the place of a row in the call."""

    def score_facts(self, facts: Facts, columns: int, batch: SamplingBatch) -> Tensor:
        return super().score_facts(facts, columns, attrs.evolve(batch, positions=np.arange(len(batch.positions))))


class AnswersNothing(PackedSampler):
    """What is asked besides a token is not told where facts decide."""

    def score_facts(self, facts: Facts, columns: int, batch: SamplingBatch) -> Tensor:
        told = super().score_facts(facts, columns, batch)
        told[3:] = 0
        return told


class ForgetsTheSecond(PackedSampler):
    """The second value is taken for minus infinity."""

    def score_facts(self, facts: Facts, columns: int, batch: SamplingBatch) -> Tensor:
        second = None if facts.second is None else facts.second.clone().fill_(-np.inf)
        return super().score_facts(attrs.evolve(facts, second=second), columns, batch)


_KINDS = (SaysYes, LowersNothing, ExcludesNothing, DrawsByPlace, AnswersNothing, ForgetsTheSecond)


def _mutant(kind: type[PackedSampler]) -> Mutant:
    name = (kind.__doc__ or "").strip().rstrip(".")
    check = checks.check_sampler_decides_by_facts_as_by_logits
    return Mutant(name=name, check=check, subject=lambda: SamplerSubject(name="mutant", factory=kind))


MUTANTS: tuple[Mutant, ...] = tuple(map(_mutant, _KINDS))
