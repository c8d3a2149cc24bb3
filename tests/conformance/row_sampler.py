"""A sampler as a stranger might write it: row by row, in float64, over all columns. Mutants break one method."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import attrs
import numpy as np
import torch
from torch import Tensor

from diffulex_core.distributed import ALONE, Communicator
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.types import BoolArray, Decision, FloatArray, SamplingBatch, Window


@attrs.frozen(kw_only=True, eq=False)
class Turn:
    """One row with what it needs to know."""

    row: int
    window: Window
    position: int
    greedy: bool
    clean: bool
    measure: str

    @property
    def params(self) -> SamplingParams:
        return self.window.params


@attrs.define(kw_only=True, eq=False)
class RowSampler:
    """A sound sampler; it answers no questions and reports no log probabilities."""

    vocab_size: int
    forbidden: frozenset[int]
    tp: Communicator = ALONE

    def sample(self, logits: Tensor, batch: SamplingBatch) -> Sequence[Decision]:
        wide = self.gathered(logits)
        turns = [self.turn(row, batch) for row in range(len(wide))]
        told = [self.told(each, wide[each.row]) for each in turns]
        tokens = np.array([token for token, _, _ in told], dtype=np.int64)
        confidence = np.array([value for _, value, _ in told], dtype=np.float32)
        fine = np.array([finite for _, _, finite in told], dtype=np.bool_)
        accepted = self.accepted(confidence, batch)
        decisions = []
        for index in range(len(batch.windows)):
            rows = batch.window_of_row == index
            finite = self.finite(fine, rows)
            decisions.append(
                Decision(
                    positions=batch.positions[rows],
                    tokens=tokens[rows],
                    confidence=confidence[rows],
                    accepted=accepted[rows] & finite,
                    finite=finite,
                )
            )
        return decisions

    def gathered(self, logits: Tensor) -> FloatArray:
        """[rows, vocab_size] of all processes."""
        wide = torch.cat(tuple(self.tp.gather(logits.double())), dim=1)[:, : self.vocab_size]
        return np.array(wide.cpu().numpy())

    def turn(self, row: int, batch: SamplingBatch) -> Turn:
        group = batch.group_of_row[row]
        window = batch.windows[batch.window_of_row[row]]
        assert batch.clean_confidence is not None
        return Turn(
            row=row,
            window=window,
            position=int(batch.positions[row]),
            greedy=bool(batch.greedy[group]),
            clean=bool(batch.clean_confidence[group]),
            measure=batch.measure[group] or window.params.confidence,
        )

    def told(self, turn: Turn, row: FloatArray) -> tuple[int, float, bool]:
        """Token, confidence, and whether the row is finite."""
        scores = self.biased(turn, self.masked(turn, row))
        if not self.is_finite(scores):
            return 0, 0.0, False
        shares = self.limited(turn, self.softmax(scores, self.temperature(turn)))
        token = self.token(turn, scores, shares)
        return token, self.confidence(turn, self.basis(turn, scores, shares), token), True

    def masked(self, turn: Turn, row: FloatArray) -> FloatArray:
        row = row.copy()
        row[[token for token in self.forbidden if token < self.vocab_size]] = -np.inf
        return row

    def biased(self, turn: Turn, row: FloatArray) -> FloatArray:
        for token, bias in turn.params.logit_bias.items():
            if token < len(row):
                row[token] += bias
        return row

    def is_finite(self, scores: FloatArray) -> bool:
        return bool(np.isfinite(scores.max()))

    def temperature(self, turn: Turn) -> float:
        return 1.0 if turn.greedy or turn.params.temperature == 0 else turn.params.temperature

    def softmax(self, scores: FloatArray, temperature: float) -> FloatArray:
        powers = np.exp((scores - scores.max()) / temperature)
        result: FloatArray = powers / powers.sum()
        return result

    def limited(self, turn: Turn, shares: FloatArray) -> FloatArray:
        order = np.lexsort((-np.arange(len(shares)), -shares))
        count = max(1, min(self.first_k(turn, shares[order]), self.first_p(turn, shares[order])))
        count = max(1, min(count, self.first_min_p(turn, shares[order])))
        result = np.zeros_like(shares)
        result[order[:count]] = shares[order[:count]]
        return result / result.sum()

    def first_k(self, turn: Turn, ranked: FloatArray) -> int:
        return turn.params.top_k or len(ranked)

    def first_p(self, turn: Turn, ranked: FloatArray) -> int:
        before = np.cumsum(ranked) - ranked
        return len(ranked) if turn.params.top_p == 1 else int((before <= turn.params.top_p).sum())

    def first_min_p(self, turn: Turn, ranked: FloatArray) -> int:
        return int((ranked >= turn.params.min_p * ranked[0]).sum())

    def token(self, turn: Turn, scores: FloatArray, shares: FloatArray) -> int:
        if turn.greedy or turn.params.temperature == 0:
            return self.best(scores)
        ends = np.cumsum(shares)
        return int(np.searchsorted(ends, self.number(turn) * ends[-1], side="right"))

    def best(self, scores: FloatArray) -> int:
        return int(np.flatnonzero(scores == scores.max())[-1])

    def number(self, turn: Turn) -> float:
        return hashed(turn.params.seed or 0, turn.window.draw, turn.position)

    def basis(self, turn: Turn, scores: FloatArray, shares: FloatArray) -> FloatArray:
        return self.softmax(scores, 1.0) if turn.clean else shares

    def confidence(self, turn: Turn, shares: FloatArray, token: int) -> float:
        with np.errstate(divide="ignore", invalid="ignore"):
            entropy = -float(np.nansum(shares * np.log(shares)))
        first, second = np.sort(shares)[::-1][:2]
        measures = {
            "prob": float(shares[token]),
            "margin": float(first - second),
            "neg_entropy": float(np.exp(-entropy)),
            "entropy": -entropy,
        }
        return measures[turn.measure]

    def finite(self, fine: BoolArray, rows: BoolArray) -> bool:
        return bool(fine[rows].all())

    def accepted(self, confidence: FloatArray, batch: SamplingBatch) -> BoolArray:
        result = np.zeros(len(confidence), dtype=np.bool_)
        for group in np.unique(batch.group_of_row):
            rows = np.flatnonzero(batch.group_of_row == group)
            result[rows] = self.passing(confidence[rows], float(batch.accept_threshold[group]))
            if batch.force_one[group] and not result[rows].any():
                result[rows[self.forced(confidence[rows])]] = True
        return result

    def passing(self, confidence: FloatArray, threshold: float) -> BoolArray:
        passing: BoolArray = confidence > threshold
        return passing

    def forced(self, confidence: FloatArray) -> int:
        return int(confidence.argmax())


def hashed(*words: int) -> float:
    """A number in [0, 1) of some words."""
    digest = hashlib.blake2b(repr(words).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64
