"""Broken subjects for the checks of `diffulex_core.testing.checks.sampler_rules`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np
from torch import Tensor

from diffulex_core.sampling import PackedSampler
from diffulex_core.testing.check import Check
from diffulex_core.testing.checks import sampler_rules as rules
from diffulex_core.testing.subjects import SamplerSubject
from diffulex_core.types import BoolArray, Decision, FloatArray, LogProbabilities, SamplingBatch
from tests.conformance.mutant import Mutant
from tests.conformance.row_sampler import RowSampler, Turn, hashed


class AcceptsTheThresholdItself(RowSampler):
    def passing(self, confidence: FloatArray, threshold: float) -> BoolArray:
        passing: BoolArray = confidence >= threshold
        return passing


class RoundsThresholds(RowSampler):
    def passing(self, confidence: FloatArray, threshold: float) -> BoolArray:
        return super().passing(confidence, float(np.float16(threshold)))


class ForcesNone(RowSampler):
    def accepted(self, confidence: FloatArray, batch: SamplingBatch) -> BoolArray:
        never = np.zeros_like(batch.force_one)
        return super().accepted(confidence, attrs.evolve(batch, force_one=never))


class ForcesEverywhere(RowSampler):
    def accepted(self, confidence: FloatArray, batch: SamplingBatch) -> BoolArray:
        always = np.ones_like(batch.force_one)
        return super().accepted(confidence, attrs.evolve(batch, force_one=always))


class ForcesTheLastOfEquals(RowSampler):
    def forced(self, confidence: FloatArray) -> int:
        return int(np.flatnonzero(confidence == confidence.max())[-1])


class ForcesTheLeastConfident(RowSampler):
    def forced(self, confidence: FloatArray) -> int:
        return int(confidence.argmin())


class ForcesOneForEachWindow(RowSampler):
    def accepted(self, confidence: FloatArray, batch: SamplingBatch) -> BoolArray:
        result = super().accepted(confidence, attrs.evolve(batch, force_one=np.zeros_like(batch.force_one)))
        for window in np.unique(batch.window_of_row):
            rows = np.flatnonzero(batch.window_of_row == window)
            if batch.force_one[batch.group_of_row[rows]].all() and not result[rows].any():
                result[rows[confidence[rows].argmax()]] = True
        return result


class IgnoresTheTemperature(RowSampler):
    def temperature(self, turn: Turn) -> float:
        return 1.0


class LimitsUntemperedShares(RowSampler):
    """`min_p` is compared with probabilities before the temperature."""

    def first_min_p(self, turn: Turn, ranked: FloatArray) -> int:
        return int((ranked ** self.temperature(turn) >= turn.params.min_p * ranked[0] ** self.temperature(turn)).sum())


class CountsDrawsInAByte(RowSampler):
    def number(self, turn: Turn) -> float:
        return hashed(turn.params.seed or 0, turn.window.draw % 256, turn.position)


class TempersGreedyGroups(RowSampler):
    def temperature(self, turn: Turn) -> float:
        return turn.params.temperature or 1.0


class NeverDraws(RowSampler):
    def token(self, turn: Turn, scores: FloatArray, shares: FloatArray) -> int:
        return self.best(scores)


class DrawsUntempered(RowSampler):
    def token(self, turn: Turn, scores: FloatArray, shares: FloatArray) -> int:
        return super().token(turn, scores, self.softmax(scores, 1.0))


class DrawsEvenly(RowSampler):
    def token(self, turn: Turn, scores: FloatArray, shares: FloatArray) -> int:
        return super().token(turn, scores, (shares > 0) / (shares > 0).sum())


class DrawsTheWrongEnd(RowSampler):
    def number(self, turn: Turn) -> float:
        return super().number(turn) ** 1.2


class ForgetsThePosition(RowSampler):
    def number(self, turn: Turn) -> float:
        return hashed(turn.params.seed or 0, turn.window.draw)


class ForgetsTheStep(RowSampler):
    def number(self, turn: Turn) -> float:
        return hashed(turn.params.seed or 0, turn.position)


class ForgetsTheSeed(RowSampler):
    def number(self, turn: Turn) -> float:
        return hashed(turn.window.draw, turn.position)


class AddsItsWords(RowSampler):
    def number(self, turn: Turn) -> float:
        return hashed((turn.params.seed or 0) + turn.window.draw + turn.position)


class MarginIsProbability(RowSampler):
    def confidence(self, turn: Turn, shares: FloatArray, token: int) -> float:
        return float(shares[token]) if turn.measure == "margin" else super().confidence(turn, shares, token)


class EntropyInBits(RowSampler):
    def confidence(self, turn: Turn, shares: FloatArray, token: int) -> float:
        value = super().confidence(turn, shares, token)
        return value ** (1 / np.log(2)) if turn.measure == "neg_entropy" else value


class IgnoresTheGroupsMeasure(RowSampler):
    def turn(self, row: int, batch: SamplingBatch) -> Turn:
        turn = super().turn(row, batch)
        return attrs.evolve(turn, measure=turn.params.confidence)


class CleanConfidenceAfterLimits(RowSampler):
    def basis(self, turn: Turn, scores: FloatArray, shares: FloatArray) -> FloatArray:
        return self.limited(turn, self.softmax(scores, 1.0)) if turn.clean else shares


class CleanConfidenceIsTempered(RowSampler):
    def basis(self, turn: Turn, scores: FloatArray, shares: FloatArray) -> FloatArray:
        return self.softmax(scores, self.temperature(turn)) if turn.clean else shares


class AlternativesAreSquared(PackedSampler):
    def sample(self, logits: Tensor, batch: SamplingBatch) -> Sequence[Decision]:
        return [
            each
            if each.alternatives is None
            else attrs.evolve(
                each,
                alternatives=attrs.evolve(each.alternatives, probabilities=each.alternatives.probabilities**0.5),
            )
            for each in super().sample(logits, batch)
        ]


class WatchesTheLastRow(PackedSampler):
    def sample(self, logits: Tensor, batch: SamplingBatch) -> Sequence[Decision]:
        return [
            each if each.watched is None else attrs.evolve(each, watched=each.watched[::-1].copy())
            for each in super().sample(logits, batch)
        ]


class ForgetsPenalties(PackedSampler):
    def sample(self, logits: Tensor, batch: SamplingBatch) -> Sequence[Decision]:
        if batch.questions is not None:
            free = attrs.evolve(batch.questions, penalty=np.zeros_like(batch.questions.penalty))
            batch = attrs.evolve(batch, questions=free)
        return super().sample(logits, batch)


class ReportsTempered(PackedSampler):
    def sample(self, logits: Tensor, batch: SamplingBatch) -> Sequence[Decision]:
        return [
            each
            if each.logprobs is None
            else attrs.evolve(each, logprobs=attrs.evolve(each.logprobs, chosen=np.log(each.confidence)))
            for each in super().sample(logits, batch)
        ]


class ReportsUnasked(PackedSampler):
    def sample(self, logits: Tensor, batch: SamplingBatch) -> Sequence[Decision]:
        return [
            attrs.evolve(
                each,
                logprobs=each.logprobs
                or LogProbabilities(
                    chosen=np.log(each.confidence),
                    tokens=np.zeros((len(each.tokens), 0), dtype=np.int64),
                    most=np.zeros((len(each.tokens), 0), dtype=np.float32),
                ),
            )
            for each in super().sample(logits, batch)
        ]


def _mutant(check: Check[SamplerSubject], what: str, factory: Any) -> Mutant:
    return Mutant(name=what, check=check, subject=lambda: SamplerSubject(name=what, factory=factory))


MUTANTS: tuple[Mutant, ...] = (
    _mutant(rules.check_sampler_accept_rule, "accepts at the threshold itself", AcceptsTheThresholdItself),
    _mutant(rules.check_sampler_accept_rule, "rounds thresholds", RoundsThresholds),
    _mutant(rules.check_sampler_accept_rule, "forces none", ForcesNone),
    _mutant(rules.check_sampler_accept_rule, "forces one in every group", ForcesEverywhere),
    _mutant(rules.check_sampler_accept_rule, "forces the last of equals", ForcesTheLastOfEquals),
    _mutant(rules.check_sampler_accept_rule, "forces the least confident", ForcesTheLeastConfident),
    _mutant(rules.check_sampler_accept_rule, "forces one for each request", ForcesOneForEachWindow),
    _mutant(rules.check_sampler_heeds_the_temperature, "ignores the temperature", IgnoresTheTemperature),
    _mutant(rules.check_sampler_heeds_the_temperature, "tempers greedy groups", TempersGreedyGroups),
    _mutant(rules.check_sampler_heeds_the_temperature, "limits untempered shares", LimitsUntemperedShares),
    _mutant(rules.check_sampler_draws_follow_the_distribution, "never draws", NeverDraws),
    _mutant(rules.check_sampler_draws_follow_the_distribution, "draws untempered", DrawsUntempered),
    _mutant(rules.check_sampler_draws_follow_the_distribution, "draws evenly among what is kept", DrawsEvenly),
    _mutant(rules.check_sampler_draws_follow_the_distribution, "its numbers are not uniform", DrawsTheWrongEnd),
    _mutant(rules.check_sampler_draws_are_independent, "forgets the position", ForgetsThePosition),
    _mutant(rules.check_sampler_draws_are_independent, "forgets the step", ForgetsTheStep),
    _mutant(rules.check_sampler_draws_are_independent, "forgets the seed", ForgetsTheSeed),
    _mutant(rules.check_sampler_draws_are_independent, "counts draws in a byte", CountsDrawsInAByte),
    _mutant(rules.check_sampler_draws_are_independent, "adds seed, step and position", AddsItsWords),
    _mutant(rules.check_sampler_measures, "margin is the probability", MarginIsProbability),
    _mutant(rules.check_sampler_measures, "entropy in bits", EntropyInBits),
    _mutant(rules.check_sampler_measures, "ignores what a group asks for", IgnoresTheGroupsMeasure),
    _mutant(rules.check_sampler_clean_confidence, "clean confidence is taken after limits", CleanConfidenceAfterLimits),
    _mutant(rules.check_sampler_clean_confidence, "clean confidence is tempered", CleanConfidenceIsTempered),
    _mutant(rules.check_sampler_answers_questions, "alternatives are tempered", AlternativesAreSquared),
    _mutant(rules.check_sampler_answers_questions, "watches other rows", WatchesTheLastRow),
    _mutant(rules.check_sampler_answers_questions, "forgets penalties", ForgetsPenalties),
    _mutant(rules.check_sampler_reports_log_probabilities, "reports tempered numbers", ReportsTempered),
    _mutant(rules.check_sampler_reports_log_probabilities, "reports what nobody asked for", ReportsUnasked),
)
