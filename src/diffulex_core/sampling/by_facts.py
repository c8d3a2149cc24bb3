"""Deciding rows by facts, without their logits: the most probable token, or one of the few most probable ones."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffulex_core.distributed import Communicator
from diffulex_core.distributed.ranges import Range
from diffulex_core.pattern import IntArray
from diffulex_core.sampling import choose
from diffulex_core.sampling.confidence import FactMeasure, Measure, Offer, Said, Settled, agree, asked, at_columns
from diffulex_core.sampling.facts import Facts, Wanted
from diffulex_core.sampling.filters import limits, restrict
from diffulex_core.sampling.logprobs import asking, spread
from diffulex_core.sampling.questions import answered, ranked
from diffulex_core.sampling.rng import numbers
from diffulex_core.sampling.selected import is_narrowed, measures, needs, ways
from diffulex_core.sampling.sums import log_sum
from diffulex_core.transfer import on_device
from diffulex_core.types import Questions, SamplingBatch


def wanted(batch: SamplingBatch, held: Range, excluded: Sequence[int]) -> Wanted:
    """What must be known of rows that are `selectable`.

    Args:
        held: the ids of this process's columns.
        excluded: those of the columns that are never chosen, ascending.
    """
    second, entropy = needs(batch)
    questions = batch.questions
    found = Wanted(
        columns=held.length, excluded=tuple(excluded), second=second, entropy=entropy, top=_most(batch, held.size)
    )
    if questions is None:
        return found
    return attrs.evolve(
        found,
        lowered=_local(questions.discouraged, held),
        penalty=questions.penalty.astype(np.float32),
        watched=_watched(questions, held, excluded),
    )


def score(
    facts: Facts, batch: SamplingBatch, held: Range, excluded: Sequence[int], tp: Communicator
) -> tuple[Settled, list[Tensor]]:
    """What all processes agree on, and what questions and requests ask for besides; a collective.

    Args:
        facts: as `wanted` says.
        held, excluded: as there.
        tp: the processes that hold the vocabulary.
    """
    few = _few(facts, batch, held, tp)
    offer, own = _offer(facts, few, held)
    said = [
        Said(measure=measure, rows=on_device(rows, own.device), told=_told(measure, rows, facts, few))
        for measure, rows in asked(measures(batch))
    ]
    settled = agree(offer, said, tp)
    parts = list[Tensor]()
    if batch.questions is not None:
        parts.append(_answers(facts, batch.questions, held, excluded, tp))
    report = asking(batch)
    if report is not None:
        rows, most = on_device(report[0], own.device), report[1]
        if len(rows):
            chosen = own.masked_fill(offer.token != settled.tokens, -torch.inf)[rows]
            found = ranked(facts.log_sum[rows], chosen, *_best(facts, most, held, rows), tp)
        else:
            found = own.new_empty(most, 0), own.new_empty(1 + most, 0)
        parts.append(spread(found, rows, len(own)))
    return settled, parts


@attrs.frozen(kw_only=True, eq=False)
class _Few:
    """The rows of a batch that take one of their few most probable tokens.

    Attributes:
        rows: [n] which they are.
        place: [rows of the batch] where each of them stands among these n; -1 for the others.
        clean: [n] bool, confidence is not taken from what is left of the distribution.
        columns: [n, k] int64, ascending.
        values: [n, k] float32, as the network gives them.
        scores: [n, k] float32, tempered and limited.
        chosen: [n] int64 index among the k; -1 where another process holds the token.
    """

    rows: NDArray[np.int64]
    place: NDArray[np.int64]
    clean: NDArray[np.bool_]
    columns: Tensor
    values: Tensor
    scores: Tensor
    chosen: Tensor


def _few(facts: Facts, batch: SamplingBatch, held: Range, tp: Communicator) -> _Few | None:
    """Temper, limit and choose; tokens stand in the order of their ids, as in a whole row."""
    if not any(map(is_narrowed, batch.params)):
        return None
    way = ways(batch)
    rows = np.flatnonzero(way.narrow)
    if len(rows) == 0:
        return None
    assert facts.top is not None
    assert facts.top_columns is not None
    at = on_device(rows, facts.best.device)
    columns, order = facts.top_columns[at].sort(dim=1)
    values = facts.top[at].gather(1, order)
    params = batch.params
    owners = [params[index] for index in batch.window_of_row[rows]]
    temperature = np.array([each.temperature for each in owners])
    temperature[batch.greedy[batch.group_of_row[rows]]] = 0.0
    drawn = temperature > 0
    divisor = on_device(np.where(drawn, temperature, 1.0), values.device, torch.float32)
    scores = restrict(values / divisor[:, None], *limits(owners, held.size, values.device), tp)
    chosen = choose.greedy(scores)
    if drawn.any():
        lots = on_device(numbers(batch, rows[drawn]), values.device)
        which = on_device(np.flatnonzero(drawn), values.device)
        chosen[which] = choose.draw(scores[which], lots, tp)
    place = np.full(len(batch.positions), -1, dtype=np.int64)
    place[rows] = np.arange(len(rows))
    return _Few(
        rows=rows, place=place, clean=way.clean[rows], columns=columns, values=values, scores=scores, chosen=chosen
    )


def _offer(facts: Facts, few: _Few | None, held: Range) -> tuple[Offer, Tensor]:
    """What this process offers, and [rows] float64 the offered tokens' scores as the network gives them."""
    best, token = facts.best.double(), facts.column.double() + held.start
    if few is None:
        return Offer(score=best, token=token, log_sum=facts.log_sum, weighed=best), best
    at = on_device(few.rows, best.device)
    clean = on_device(few.clean, best.device)
    ids = few.columns.gather(1, few.chosen.clamp(min=0)[:, None]).squeeze(1).double() + held.start
    offered, plain = (at_columns(each, few.chosen).double() for each in (few.scores, few.values))
    own = best.index_copy(0, at, plain)
    return Offer(
        score=best.index_copy(0, at, offered),
        token=token.index_copy(0, at, ids),
        log_sum=facts.log_sum.index_copy(0, at, torch.where(clean, facts.log_sum[at], log_sum(few.scores))),
        weighed=best.index_copy(0, at, torch.where(clean, plain, offered)),
    ), own


def _told(measure: Measure, rows: NDArray[np.int64], facts: Facts, few: _Few | None) -> Tensor:
    """What this process says for a measure of these rows: of the tokens that are left where confidence is theirs."""
    at = on_device(rows, facts.best.device)
    here = np.empty(0, dtype=np.int64) if few is None else few.place[rows]
    narrow = np.flatnonzero(here >= 0) if few is not None else here
    if few is not None:
        narrow = narrow[~few.clean[here[narrow]]]
    if isinstance(measure, FactMeasure):
        told = measure.told_by(facts)[:, at].double()
    else:
        told = facts.log_sum.new_zeros(1, len(rows))
    if few is not None and len(narrow):
        among = on_device(here[narrow], at.device)
        told[:, on_device(narrow, at.device)] = measure.told(few.scores[among]).double()
    return told


def _answers(facts: Facts, questions: Questions, held: Range, excluded: Sequence[int], tp: Communicator) -> Tensor:
    """As `questions.answer`."""
    assert facts.watched is not None
    told, log_sums = facts.watched[:, 0], facts.log_sum
    local = _local(questions.watched, held)
    penalty = np.where(local == _local(questions.discouraged, held), questions.penalty, 0).astype(np.float32)
    hidden = np.isin(local, excluded)
    if questions.raw is not None and questions.raw.any():
        raw = on_device(questions.raw, told.device)
        penalty[questions.raw], hidden[questions.raw] = 0, False
        log_sums = torch.where(raw, _with_all(facts, questions), log_sums)
    told = (told - on_device(penalty, told.device)).masked_fill(on_device(hidden, told.device), -torch.inf)
    return answered(*ranked(log_sums, told, *_best(facts, questions.most, held), tp))


def _with_all(facts: Facts, questions: Questions) -> Tensor:
    """[rows] float64 logarithm of the sum of exponentials with excluded tokens, and nothing lowered.

    A token that was lowered by p has a share of exp(x - p) already; what is missing is exp(x) (1 - exp(-p)).
    """
    assert facts.watched is not None
    others = facts.watched[:, 1:].double().clone()
    penalty = on_device(questions.penalty, others.device, torch.float64)
    others[:, -1] += (-torch.expm1(-penalty)).log()
    return torch.cat((facts.log_sum[:, None], others), dim=1).logsumexp(dim=1)


def _best(facts: Facts, most: int, held: Range, rows: Tensor | None = None) -> tuple[list[Tensor], list[Tensor]]:
    """Ids and values of the most probable tokens, [rows] float64 each, the most probable first."""
    if most == 0:
        return [], []
    assert facts.top is not None
    assert facts.top_columns is not None
    at = slice(None) if rows is None else rows
    columns, values = facts.top_columns[at, :most].double() + held.start, facts.top[at, :most].double()
    return list(columns.unbind(1)), list(values.unbind(1))


def _most(batch: SamplingBatch, vocab_size: int) -> int:
    """How many of the most probable tokens anybody needs."""
    needed, params = list[int](), batch.params
    if any(map(is_narrowed, params)):
        narrow = np.unique(batch.window_of_row[ways(batch).narrow])
        needed += [min(params[index].top_k or 0, vocab_size) for index in narrow]
    report = asking(batch)
    if report is not None and len(report[0]):
        needed.append(report[1])
    if batch.questions is not None:
        needed.append(batch.questions.most)
    return max(needed, default=0)


def _watched(questions: Questions, held: Range, excluded: Sequence[int]) -> IntArray:
    """[rows, n] columns whose values are needed: the watched one, and what raw rows have more than the others."""
    columns = [_local(questions.watched, held)]
    if questions.raw is not None and questions.raw.any():
        lowered = _local(questions.discouraged, held)
        columns += [np.where(questions.raw, column, -1) for column in excluded]
        columns.append(np.where(questions.raw & ~np.isin(lowered, excluded), lowered, -1))
    return np.stack(columns, axis=1)


def _local(ids: IntArray, held: Range) -> IntArray:
    """The columns of tokens, -1 where another process holds them or there is none."""
    local = ids - held.start
    found: IntArray = np.where((ids >= 0) & (local >= 0) & (local < held.length), local, -1)
    return found
