"""The shared mask-filling sampler: all rows of a step in one call, per-request parameters as arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffulex_core.sampling import choose
from diffulex_core.sampling.accept import accept
from diffulex_core.sampling.filters import restrict
from diffulex_core.sampling.rng import uniform
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.types import Decision, SamplingBatch

_SEED_BITS = 2**63 - 1


class PackedSampler:
    """Sampler of the mask-filling strategies.

    Probabilities are accumulated in float32 whatever the logits' dtype; results cross to the host in one copy. A row's
    result depends on that row, its request's parameters and its request's counters only.
    """

    def __init__(self, *, vocab_size: int, forbidden: frozenset[int]) -> None:
        """
        Args:
            vocab_size: ids at or above it are never chosen (padding rows of the head).
            forbidden: further ids that are never chosen (the mask token).
        """
        self._vocab_size = vocab_size
        self._forbidden = sorted(token for token in forbidden if token < vocab_size)

    def sample(self, logits: Tensor, batch: SamplingBatch) -> Sequence[Decision]:
        params = [window.params for window in batch.windows]
        row_params = batch.window_of_row
        scores = logits[:, : self._vocab_size].to(torch.float32, copy=True)
        scores[:, self._forbidden] = -torch.inf
        for index, each in enumerate(params):
            if each.logit_bias:
                self._bias(scores, torch.from_numpy(np.flatnonzero(row_params == index)), each)

        temperature = np.array([each.temperature for each in params])[row_params]
        drawn = temperature > 0
        scores /= _column(np.where(drawn, temperature, 1.0), scores)
        scores = self._restrict(scores, params, row_params)
        tokens = choose.greedy(scores)
        if drawn.any():
            rows = torch.from_numpy(np.flatnonzero(drawn)).to(scores.device)
            numbers = uniform(*(column[drawn] for column in self._counters(batch)))
            tokens[rows] = choose.draw(scores[rows], torch.from_numpy(numbers).to(scores.device))
        confidence = self._confidence(scores, tokens, params, row_params)
        finite = scores.amax(dim=1).isfinite() & confidence.isfinite()
        return self._decide(torch.stack((tokens.double(), confidence.double(), finite.double())), batch)

    def _bias(self, scores: Tensor, rows: Tensor, params: SamplingParams) -> None:
        ids = torch.tensor([token for token in params.logit_bias if token < self._vocab_size], dtype=torch.int64)
        bias = torch.tensor([params.logit_bias[int(token)] for token in ids], dtype=torch.float32)
        rows, ids, bias = rows.to(scores.device), ids.to(scores.device), bias.to(scores.device)
        scores[rows[:, None], ids] += bias

    def _restrict(self, scores: Tensor, params: Sequence[SamplingParams], row_params: NDArray[np.int64]) -> Tensor:
        limited = np.array([each.top_p < 1 or each.top_k is not None or each.min_p > 0 for each in params])[row_params]
        if not limited.any():
            return scores
        rows = torch.from_numpy(np.flatnonzero(limited)).to(scores.device)
        owners, vocab = [params[index] for index in row_params[limited]], self._vocab_size
        scores[rows] = restrict(
            scores[rows],
            torch.tensor([each.top_p for each in owners], device=scores.device),
            torch.tensor([min(each.top_k or vocab, vocab) for each in owners], device=scores.device),
            torch.tensor([each.min_p for each in owners], device=scores.device),
        )
        return scores

    def _counters(self, batch: SamplingBatch) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        seeds = np.array([(window.params.seed or 0) & _SEED_BITS for window in batch.windows], dtype=np.int64)
        draws = np.array([window.draw for window in batch.windows], dtype=np.int64)
        return seeds[batch.window_of_row], draws[batch.window_of_row], batch.positions

    def _confidence(
        self, scores: Tensor, tokens: Tensor, params: Sequence[SamplingParams], row_params: NDArray[np.int64]
    ) -> Tensor:
        confidence = choose.probability(scores, tokens)
        kinds = np.array([each.confidence for each in params])[row_params]
        measures: dict[str, Callable[[Tensor], Tensor]] = {
            "margin": choose.margin,
            "neg_entropy": choose.inverse_perplexity,
        }
        for kind, measure in measures.items():
            if (kinds == kind).any():
                rows = torch.from_numpy(np.flatnonzero(kinds == kind)).to(scores.device)
                confidence[rows] = measure(scores[rows])
        return confidence

    def _decide(self, result: Tensor, batch: SamplingBatch) -> list[Decision]:
        """Apply the accept rule on the host.

        Args:
            result: [3, rows] float64: token, confidence, whether the row is finite.
        """
        host = result.cpu().numpy()
        tokens, confidence, finite = host[0].astype(np.int64), host[1], host[2] > 0
        accepted = accept(confidence, batch.group_of_row, batch.accept_threshold, batch.force_one)
        bounds = np.searchsorted(batch.window_of_row, np.arange(len(batch.windows) + 1))
        decisions = []
        for begin, end in pairwise(bounds.tolist()):
            rows = slice(begin, end)
            decisions.append(
                Decision(
                    positions=batch.positions[rows],
                    tokens=tokens[rows],
                    confidence=confidence[rows].astype(np.float32),
                    accepted=accepted[rows] & finite[rows].all(),
                    finite=bool(finite[rows].all()),
                )
            )
        return decisions


def _column(values: NDArray[np.float64], like: Tensor) -> Tensor:
    return torch.from_numpy(values).to(like.device, torch.float32)[:, None]
