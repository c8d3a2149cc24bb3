"""Broken subjects for the checks of `diffulex_core.testing.checks.sampler`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from diffulex_core.distributed import ALONE
from diffulex_core.sampling import PackedSampler
from diffulex_core.testing.check import Check
from diffulex_core.testing.checks import sampler as checks, sampler_purity as purity
from diffulex_core.testing.subjects import SamplerSubject
from diffulex_core.types import BoolArray, Decision, FloatArray, SamplingBatch
from tests.conformance.mutant import Mutant
from tests.conformance.mutants import sampler_facts, sampler_rules
from tests.conformance.row_sampler import RowSampler, Turn, hashed


class ForgetsEmptyWindows(RowSampler):
    def sample(self, logits: Tensor, batch: SamplingBatch) -> Sequence[Decision]:
        return [decision for decision in super().sample(logits, batch) if len(decision.tokens)]


class TurnsPositionsAround(RowSampler):
    def sample(self, logits: Tensor, batch: SamplingBatch) -> Sequence[Decision]:
        return [attrs.evolve(each, positions=each.positions[::-1].copy()) for each in super().sample(logits, batch)]


class NeedsRows(RowSampler):
    def sample(self, logits: Tensor, batch: SamplingBatch) -> Sequence[Decision]:
        logits.max()
        return super().sample(logits, batch)


class HidesItsClass(RowSampler):
    def sample(self, logits: Tensor, batch: SamplingBatch) -> Sequence[Decision]:
        @attrs.frozen(kw_only=True, eq=False)
        class Hidden(Decision):
            pass

        return [
            Hidden(
                positions=each.positions,
                tokens=each.tokens,
                confidence=each.confidence,
                accepted=each.accepted,
                finite=each.finite,
            )
            for each in super().sample(logits, batch)
        ]


class EmitsTheMask(RowSampler):
    def masked(self, turn: Turn, row: FloatArray) -> FloatArray:
        return row.copy()


class EmitsTheMaskInTies(RowSampler):
    def told(self, turn: Turn, row: FloatArray) -> tuple[int, float, bool]:
        token, confidence, finite = super().told(turn, row)
        tied = [each for each in sorted(self.forbidden) if each < len(row) and row[each] == row[token]]
        return (tied[-1] if tied else token), confidence, finite


class EmitsTheMaskAboveTemperature0(RowSampler):
    def masked(self, turn: Turn, row: FloatArray) -> FloatArray:
        return super().masked(turn, row) if turn.params.temperature == 0 else row.copy()


class ExcludesOneIdOnly(RowSampler):
    def masked(self, turn: Turn, row: FloatArray) -> FloatArray:
        row = row.copy()
        row[[token for token in sorted(self.forbidden) if token < self.vocab_size][:1]] = -np.inf
        return row


class EmitsPadding(RowSampler):
    def gathered(self, logits: Tensor) -> FloatArray:
        return np.array(torch.cat(tuple(self.tp.gather(logits.double())), dim=1).cpu().numpy())


class PaddingSpoilsRows(RowSampler):
    def gathered(self, logits: Tensor) -> FloatArray:
        wide = torch.cat(tuple(self.tp.gather(logits.double())), dim=1)
        bad = ~wide.isfinite().all(dim=1, keepdim=True)
        return np.array(wide[:, : self.vocab_size].masked_fill(bad, torch.nan).cpu().numpy())


class LowestIdOfEquals(RowSampler):
    def best(self, scores: FloatArray) -> int:
        return int(scores.argmax())


class ComparesRoundedProbabilities(RowSampler):
    def best(self, scores: FloatArray) -> int:
        return super().best(np.round(self.softmax(scores, 1.0), 3))


class IgnoresGreedyGroups(RowSampler):
    def turn(self, row: int, batch: SamplingBatch) -> Turn:
        return attrs.evolve(super().turn(row, batch), greedy=False)


class IgnoresBiases(RowSampler):
    def biased(self, turn: Turn, row: FloatArray) -> FloatArray:
        return row


class ConfidenceCountsTheMask(RowSampler):
    def told(self, turn: Turn, row: FloatArray) -> tuple[int, float, bool]:
        token, confidence, finite = super().told(turn, row)
        return token, (float(self.softmax(row, 1.0)[token]) if turn.measure == "prob" else confidence), finite


class OverflowsWithLargeLogits(RowSampler):
    def softmax(self, scores: FloatArray, temperature: float) -> FloatArray:
        with np.errstate(over="ignore", invalid="ignore"):
            powers = np.exp((scores / temperature).astype(np.float32))
            result: FloatArray = powers / powers.sum()
        return np.nan_to_num(result)


class TopPKeepsOneTooMany(RowSampler):
    def first_p(self, turn: Turn, ranked: FloatArray) -> int:
        return super().first_p(turn, ranked) + 1


class TopPKeepsOneTooFew(RowSampler):
    def first_p(self, turn: Turn, ranked: FloatArray) -> int:
        return len(ranked) if turn.params.top_p == 1 else int((np.cumsum(ranked) <= turn.params.top_p).sum())


class TopKKeepsOneTooMany(RowSampler):
    def first_k(self, turn: Turn, ranked: FloatArray) -> int:
        return super().first_k(turn, ranked) + 1


class MinPIsAbsolute(RowSampler):
    def first_min_p(self, turn: Turn, ranked: FloatArray) -> int:
        return int((ranked >= turn.params.min_p).sum())


class LessAtLowThresholds(RowSampler):
    def passing(self, confidence: FloatArray, threshold: float) -> BoolArray:
        passing: BoolArray = confidence > (threshold if threshold > 0.3 else 1 - threshold)
        return passing


class SharesOneGenerator(RowSampler):
    def sample(self, logits: Tensor, batch: SamplingBatch) -> Sequence[Decision]:
        seed = (batch.windows[0].params.seed or 0) % 2**64
        self.__dict__["generator"] = np.random.default_rng([seed, batch.windows[0].draw])
        return super().sample(logits, batch)

    def number(self, turn: Turn) -> float:
        return float(self.__dict__["generator"].random())


class DrawsByRow(RowSampler):
    def number(self, turn: Turn) -> float:
        return hashed(turn.params.seed or 0, turn.window.draw, turn.row)


class SeedsByRequestId(RowSampler):
    def number(self, turn: Turn) -> float:
        return hashed(turn.window.request_id, turn.window.draw, turn.position)


class OneThresholdForAll(RowSampler):
    def accepted(self, confidence: FloatArray, batch: SamplingBatch) -> BoolArray:
        same = np.full_like(batch.accept_threshold, batch.accept_threshold[:1].sum())
        return super().accepted(confidence, attrs.evolve(batch, accept_threshold=same))


class OneTemperatureForAll(RowSampler):
    def turn(self, row: int, batch: SamplingBatch) -> Turn:
        turn = super().turn(row, batch)
        params = attrs.evolve(turn.params, temperature=batch.windows[0].params.temperature)
        return attrs.evolve(turn, window=attrs.evolve(turn.window, params=params))


class CountsItsCalls(RowSampler):
    def sample(self, logits: Tensor, batch: SamplingBatch) -> Sequence[Decision]:
        self.__dict__["calls"] = self.__dict__.get("calls", 0) + 1
        return super().sample(logits, batch)

    def number(self, turn: Turn) -> float:
        return hashed(turn.params.seed or 0, turn.window.draw, turn.position, self.__dict__["calls"])


class DrawsFromTorch(RowSampler):
    def number(self, turn: Turn) -> float:
        return float(torch.rand(()))


class SeedsTorch(RowSampler):
    def number(self, turn: Turn) -> float:
        torch.manual_seed((turn.params.seed or 0) * 8191 + turn.window.draw * 127 + turn.position)
        return float(torch.rand(()))


def latest_wins() -> Callable[..., RowSampler]:
    """Samplers that all have the vocabulary of the one that was made last."""
    latest = [0]

    class LatestWins(RowSampler):
        def __init__(self, **given: Any) -> None:
            super().__init__(**given)
            latest[0] = self.vocab_size

        def masked(self, turn: Turn, row: FloatArray) -> FloatArray:
            row = super().masked(turn, row)
            row[latest[0] :] = -np.inf
            return row

    return LatestWins


class ReusesItsBuffer(RowSampler):
    def sample(self, logits: Tensor, batch: SamplingBatch) -> Sequence[Decision]:
        buffer = self.__dict__.setdefault("buffer", np.zeros(1000, dtype=np.int64))
        decisions = []
        for decision in super().sample(logits, batch):
            tokens = buffer[: len(decision.tokens)]
            tokens[:] = decision.tokens
            decisions.append(attrs.evolve(decision, tokens=tokens.copy() if decisions else tokens))
        return decisions


class MasksInPlace(RowSampler):
    def sample(self, logits: Tensor, batch: SamplingBatch) -> Sequence[Decision]:
        logits[:, self.vocab_size :] = -torch.inf
        logits[:, [token for token in self.forbidden if token < logits.shape[1]]] = -torch.inf
        return super().sample(logits, batch)


class WritesIntoTheBatch(RowSampler):
    def accepted(self, confidence: FloatArray, batch: SamplingBatch) -> BoolArray:
        result = super().accepted(confidence, batch)
        batch.force_one[:] = False
        batch.accept_threshold[:] = 1.0
        return result


class NaNSpoilsTheBatch(RowSampler):
    def finite(self, fine: BoolArray, rows: BoolArray) -> bool:
        return bool(fine.all())


class NaNRaises(RowSampler):
    def is_finite(self, scores: FloatArray) -> bool:
        if not super().is_finite(scores):
            raise RuntimeError("probability tensor contains either `inf`, `nan` or element < 0")
        return True


class NaNIsNotNoticed(RowSampler):
    def finite(self, fine: BoolArray, rows: BoolArray) -> bool:
        return True


class InfinityIsFine(RowSampler):
    def is_finite(self, scores: FloatArray) -> bool:
        return not np.isnan(scores).any() and scores.max() > -np.inf

    def softmax(self, scores: FloatArray, temperature: float) -> FloatArray:
        return super().softmax(np.minimum(scores, 1e30), temperature)


class PartsAreScaled(PackedSampler):
    def score(self, logits: Tensor, batch: SamplingBatch) -> Tensor:
        scored = super().score(logits, batch)
        scored[1] /= scored[1].max() if scored.shape[1] else 1.0
        return scored


class EveryShareAlone(RowSampler):
    def gathered(self, logits: Tensor) -> FloatArray:
        return np.array(logits[:, : self.vocab_size].double().numpy())


class SharesHaveNoOffset(PackedSampler):
    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._columns = -(-given["vocab_size"] // given.get("tp", ALONE).size)

    def sample(self, logits: Tensor, batch: SamplingBatch) -> Sequence[Decision]:
        return [
            attrs.evolve(each, tokens=each.tokens % logits.shape[1] if self._tp.size > 1 else each.tokens)
            for each in super().sample(logits, batch)
        ]


class RanksDrawApart(RowSampler):
    def number(self, turn: Turn) -> float:
        return hashed(turn.params.seed or 0, turn.window.draw, turn.position, *([self.tp.rank] if self.tp.rank else []))


@attrs.define(kw_only=True, eq=False)
class SoftmaxInTheDtypeOfTheLogits(RowSampler):
    _dtype: torch.dtype = attrs.field(init=False, default=torch.float32)

    def sample(self, logits: Tensor, batch: SamplingBatch) -> Sequence[Decision]:
        self._dtype = logits.dtype
        return super().sample(logits, batch)

    def softmax(self, scores: FloatArray, temperature: float) -> FloatArray:
        shares = super().softmax(scores, temperature)
        return shares if self._dtype == torch.float32 else shares.astype(np.float16).astype(np.float64)


@attrs.define(kw_only=True, eq=False)
class RemembersTemperatures(RowSampler):
    """Keeps what as many requests asked for before."""

    _before: list[float] = attrs.field(init=False, factory=list)

    def sample(self, logits: Tensor, batch: SamplingBatch) -> Sequence[Decision]:
        if len(self._before) != len(batch.windows):
            self._before = [window.params.temperature for window in batch.windows]
        windows = tuple(
            attrs.evolve(window, params=attrs.evolve(window.params, temperature=temperature))
            for window, temperature in zip(batch.windows, self._before, strict=True)
        )
        return super().sample(logits, attrs.evolve(batch, windows=windows))


def _mutant(check: Check[SamplerSubject], what: str, factory: Callable[[], Any]) -> Mutant:
    return Mutant(name=what, check=check, subject=lambda: SamplerSubject(name=what, factory=factory()))


def _class(check: Check[SamplerSubject], what: str, factory: Any) -> Mutant:
    return _mutant(check, what, lambda: factory)


MUTANTS: tuple[Mutant, ...] = (
    _class(checks.check_sampler_decides_every_row, "forgets windows without rows", ForgetsEmptyWindows),
    _class(checks.check_sampler_decides_every_row, "turns positions around", TurnsPositionsAround),
    _class(checks.check_sampler_decides_every_row, "needs at least one row", NeedsRows),
    _class(checks.check_sampler_decides_every_row, "decisions cannot be pickled", HidesItsClass),
    _class(checks.check_sampler_never_decides_forbidden_ids, "emits the mask id where it wins", EmitsTheMask),
    _class(checks.check_sampler_never_decides_forbidden_ids, "emits the mask id in ties only", EmitsTheMaskInTies),
    _class(checks.check_sampler_never_decides_forbidden_ids, "draws the mask id", EmitsTheMaskAboveTemperature0),
    _class(checks.check_sampler_never_decides_forbidden_ids, "excludes one id of several", ExcludesOneIdOnly),
    _class(checks.check_sampler_never_decides_padding, "emits padding", EmitsPadding),
    _class(checks.check_sampler_never_decides_padding, "NaN in padding spoils rows", PaddingSpoilsRows),
    _class(checks.check_sampler_is_greedy_at_temperature_0, "takes the lowest id of equals", LowestIdOfEquals),
    _class(checks.check_sampler_is_greedy_at_temperature_0, "compares rounded numbers", ComparesRoundedProbabilities),
    _class(checks.check_sampler_is_greedy_at_temperature_0, "ignores greedy groups", IgnoresGreedyGroups),
    _class(checks.check_sampler_is_greedy_at_temperature_0, "ignores biases", IgnoresBiases),
    _class(checks.check_sampler_confidence_is_a_probability, "confidence counts the mask id", ConfidenceCountsTheMask),
    _class(checks.check_sampler_confidence_is_a_probability, "overflows", OverflowsWithLargeLogits),
    _class(checks.check_sampler_confidence_is_a_probability, "rounds as logits are", SoftmaxInTheDtypeOfTheLogits),
    _class(checks.check_sampler_limits_keep_the_right_tokens, "top-p keeps one too many", TopPKeepsOneTooMany),
    _class(checks.check_sampler_limits_keep_the_right_tokens, "top-p keeps one too few", TopPKeepsOneTooFew),
    _class(checks.check_sampler_limits_keep_the_right_tokens, "top-k keeps one too many", TopKKeepsOneTooMany),
    _class(checks.check_sampler_limits_keep_the_right_tokens, "min-p is no share of the best", MinPIsAbsolute),
    _class(
        checks.check_sampler_accepts_more_below_a_lower_threshold,
        "low thresholds are strict",
        LessAtLowThresholds,
    ),
    _class(purity.check_sampler_batch_does_not_matter, "requests share a generator", SharesOneGenerator),
    _class(purity.check_sampler_batch_does_not_matter, "draws depend on row order", DrawsByRow),
    _class(purity.check_sampler_batch_does_not_matter, "seeds by request id", SeedsByRequestId),
    _class(purity.check_sampler_batch_does_not_matter, "the first group's threshold for all", OneThresholdForAll),
    _class(purity.check_sampler_batch_does_not_matter, "the first request's temperature for all", OneTemperatureForAll),
    _class(purity.check_sampler_keeps_nothing_between_calls, "counts its calls", CountsItsCalls),
    _class(purity.check_sampler_keeps_nothing_between_calls, "remembers temperatures", RemembersTemperatures),
    _class(purity.check_sampler_keeps_nothing_between_calls, "draws from torch's generator", DrawsFromTorch),
    _class(purity.check_sampler_keeps_nothing_between_calls, "seeds torch's generator", SeedsTorch),
    _mutant(purity.check_sampler_keeps_nothing_between_calls, "samplers share a vocabulary", latest_wins),
    _class(purity.check_sampler_keeps_nothing_between_calls, "writes into earlier answers", ReusesItsBuffer),
    _class(purity.check_sampler_leaves_its_arguments_alone, "masks logits in place", MasksInPlace),
    _class(purity.check_sampler_leaves_its_arguments_alone, "writes into the batch", WritesIntoTheBatch),
    _class(purity.check_sampler_names_rows_that_are_not_finite, "NaN ends all requests", NaNSpoilsTheBatch),
    _class(purity.check_sampler_names_rows_that_are_not_finite, "NaN raises", NaNRaises),
    _class(purity.check_sampler_names_rows_that_are_not_finite, "NaN is not noticed", NaNIsNotNoticed),
    _class(purity.check_sampler_names_rows_that_are_not_finite, "infinity is certain", InfinityIsFine),
    _class(purity.check_sampler_parts_are_the_whole, "parts are scaled apart", PartsAreScaled),
    _class(purity.check_sampler_shares_agree, "every share decides alone", EveryShareAlone),
    _class(purity.check_sampler_shares_agree, "ids are columns of a share", SharesHaveNoOffset),
    _class(purity.check_sampler_shares_agree, "ranks draw different numbers", RanksDrawApart),
    *sampler_rules.MUTANTS,
    *sampler_facts.MUTANTS,
)
