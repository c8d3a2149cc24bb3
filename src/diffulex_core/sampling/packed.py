"""The shared mask-filling sampler: all rows of a step in one call, per-request parameters as arrays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffulex_core.distributed import ALONE, Communicator
from diffulex_core.distributed.ranges import Range
from diffulex_core.pattern import IntArray
from diffulex_core.sampling import by_facts, choose
from diffulex_core.sampling.accept import accept
from diffulex_core.sampling.confidence import Settled, settle
from diffulex_core.sampling.facts import Facts, Wanted
from diffulex_core.sampling.filters import limits, restrict
from diffulex_core.sampling.logprobs import Reported, reported
from diffulex_core.sampling.questions import alternatives, answer, discourage, restore, watched, watched_log
from diffulex_core.sampling.rng import numbers
from diffulex_core.sampling.selected import is_limited, measures, selectable
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.transfer import on_device
from diffulex_core.types import BoolArray, Decision, SamplingBatch


class PackedSampler:
    """Sampler of the mask-filling strategies.

    Probabilities are accumulated in float32 whatever the logits' dtype; results cross to the host in one copy. A row's
    result depends on that row, its request's parameters and its request's counters only.

    The vocabulary may be divided among processes: each passes its own columns, all call at once with the same batch,
    and all get the same decisions. One exchange of a few numbers a row settles a call, draws and limits cost some more.
    """

    def __init__(self, *, vocab_size: int, forbidden: frozenset[int], tp: Communicator = ALONE) -> None:
        """
        Args:
            vocab_size: ids at or above it are never chosen (padding rows of the head).
            forbidden: further ids that are never chosen (the mask token).
            tp: the processes that hold the vocabulary; see `DiffusionModel.logits` for who holds what.
        """
        self._vocab_size = vocab_size
        self._forbidden = sorted(token for token in forbidden if token < vocab_size)
        self._tp = tp

    def sample(self, logits: Tensor, batch: SamplingBatch) -> Sequence[Decision]:
        return self.decide(self.score(logits, batch), batch)

    def score(self, logits: Tensor, batch: SamplingBatch) -> Tensor:
        """[3, rows] float64: token, confidence, whether the row is finite; then what questions and requests ask for."""
        params = batch.params
        row_params = batch.window_of_row
        held = self._held(logits.shape[1])
        scores = logits[:, : max(held.length, 1)].to(torch.float32, copy=True)
        scores[:, held.length :] = -torch.inf  # of a process that holds no real id, one column is left
        scores.index_fill_(1, on_device(_columns(self._forbidden, held), scores.device, torch.int64), -torch.inf)
        for index, each in enumerate(params):
            if each.logit_bias:
                self._bias(scores, held, np.flatnonzero(row_params == index), each)

        if batch.questions is not None:
            discourage(scores, held, batch.questions)
        temperature = np.array([each.temperature for each in params])[row_params]
        temperature[batch.greedy[batch.group_of_row]] = 0.0
        drawn = temperature > 0
        clean = on_device(_clean_rows(batch), scores.device)
        asked = None if batch.questions is None else scores.clone()
        untouched = scores[clean]
        report = Reported.of(batch, scores)
        if drawn.any():
            scores /= _column(np.where(drawn, temperature, 1.0), scores)
        scores = self._restrict(scores, params, row_params)
        columns = choose.greedy(scores)
        if drawn.any():
            rows = on_device(np.flatnonzero(drawn), scores.device)
            lots = on_device(numbers(batch, drawn), scores.device)
            columns[rows] = choose.draw(scores[rows], lots, self._tp)
        basis = scores.index_copy(0, clean, untouched) if len(clean) else scores
        settled = settle(scores, columns, measures(batch), held.start, self._tp, basis)
        parts = [_scored(settled)]
        if batch.questions is not None and asked is not None:
            restore(asked, logits, held, batch.questions)
            parts.append(answer(asked, held, batch.questions, self._tp))
        if report is not None:
            parts.append(report.measure(settled.tokens, held, self._tp))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def selectable(self, batch: SamplingBatch) -> BoolArray:
        """See `SelectingSampler`."""
        return selectable(batch)

    def wanted(self, columns: int, batch: SamplingBatch) -> Wanted:
        """See `SelectingSampler`."""
        held = self._held(columns)
        return by_facts.wanted(batch, held, _columns(self._forbidden, held))

    def score_facts(self, facts: Facts, columns: int, batch: SamplingBatch) -> Tensor:
        """See `SelectingSampler`; a collective, which moves a few numbers for each row."""
        held = self._held(columns)
        settled, parts = by_facts.score(facts, batch, held, _columns(self._forbidden, held), self._tp)
        return torch.cat([_scored(settled), *parts])

    def _held(self, columns: int) -> Range:
        """The real ids among those of this process's columns."""
        start = self._tp.rank * columns
        return Range(start, min(max(self._vocab_size - start, 0), columns), self._vocab_size)

    def _bias(self, scores: Tensor, held: Range, rows: IntArray, params: SamplingParams) -> None:
        columns = _columns(params.logit_bias, held)
        values = [params.logit_bias[held.start + column] for column in columns]
        at = on_device(rows, scores.device)[:, None], on_device(columns, scores.device, torch.int64)
        scores[at] += on_device(values, scores.device, torch.float32)

    def _restrict(self, scores: Tensor, params: Sequence[SamplingParams], row_params: NDArray[np.int64]) -> Tensor:
        limited = np.array([is_limited(each) for each in params])[row_params]
        if not limited.any():
            return scores
        rows = on_device(np.flatnonzero(limited), scores.device)
        owners = [params[index] for index in row_params[limited]]
        scores[rows] = restrict(scores[rows], *limits(owners, self._vocab_size, scores.device), self._tp)
        return scores

    def decide(self, scored: Tensor, batch: SamplingBatch) -> list[Decision]:
        """Apply the accept rule on the host to what `score` found."""
        host = scored.cpu().numpy()
        tokens, confidence, finite = host[0].astype(np.int64), host[1], host[2] > 0
        bounds = np.searchsorted(batch.window_of_row, np.arange(len(batch.windows) + 1))
        sound = np.bincount(batch.window_of_row[~finite], minlength=len(batch.windows)) == 0
        accepted = accept(confidence, batch.group_of_row, batch.accept_threshold, batch.force_one)
        accepted &= sound[batch.window_of_row]
        confidence = confidence.astype(np.float32)
        decisions = []
        asked = 3 + (0 if batch.questions is None else 1 + 2 * batch.questions.most)
        for params, (begin, end), whole in zip(batch.params, pairwise(bounds.tolist()), sound.tolist(), strict=True):
            rows = slice(begin, end)
            decisions.append(
                Decision(
                    positions=batch.positions[rows],
                    tokens=tokens[rows],
                    confidence=confidence[rows],
                    accepted=accepted[rows],
                    finite=whole,
                    alternatives=alternatives(host[3:asked, rows], batch.questions),
                    watched=watched(host[3:, rows], batch.questions),
                    watched_log=watched_log(host[3:, rows], batch.questions),
                    logprobs=reported(host[asked:, rows], params),
                )
            )
        return decisions


def _clean_rows(batch: SamplingBatch) -> IntArray:
    """[n] rows whose confidence is another distribution's than that which their token is chosen from."""
    if batch.clean_confidence is None or not batch.clean_confidence.any():
        return np.empty(0, dtype=np.int64)
    changes = [_tempers(params) or is_limited(params) for params in batch.params]
    return np.flatnonzero(batch.clean_confidence[batch.group_of_row] & np.array(changes)[batch.window_of_row])


def _scored(settled: Settled) -> Tensor:
    return torch.stack((settled.tokens.double(), settled.confidence.double(), settled.finite.double()))


def _tempers(params: SamplingParams) -> bool:
    return params.temperature not in (0, 1)


def _column(values: NDArray[np.float64], like: Tensor) -> Tensor:
    return on_device(values, like.device, torch.float32)[:, None]


def _columns(ids: Iterable[int], held: Range) -> list[int]:
    """The columns of those ids that are held."""
    return [token - held.start for token in ids if held.start <= token < held.start + held.length]
