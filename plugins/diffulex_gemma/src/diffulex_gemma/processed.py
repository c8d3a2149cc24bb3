"""The logits that a canvas's tokens are drawn from: biased, limited, and then tempered by the schedule."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from diffulex_core.distributed import Communicator
from diffulex_core.distributed.ranges import Range
from diffulex_core.plugin import IntArray, SamplingBatch, SamplingParams, Windows
from diffulex_core.sampling.filters import restrict
from diffulex_core.transfer import on_device

COLDEST = 1e-10
"""What temperature 0 stands for: softmax is the most probable token, evenly among equals."""


def biased(logits: Tensor, batch: SamplingBatch, held: Range) -> Tensor:
    """The network's own distribution, but for what requests add to it or exclude by a bias.

    Args:
        logits: [rows, columns] as `DiffusionModel.logits` returns them; not modified.
        batch: whose rows they are.
        held: the ids of the columns that stand for one.
    Returns:
        [rows, columns] float32, -inf where a column stands for no id; it may share memory with `logits`.
    """
    scores = logits.float()
    params = batch.params
    if held.length < logits.shape[1]:
        scores = scores.masked_fill(torch.arange(logits.shape[1], device=logits.device) >= held.length, -torch.inf)
    if any(each.logit_bias for each in params):
        scores = scores.clone()
        for index, each in enumerate(params):
            _add_bias(scores, held, np.flatnonzero(batch.window_of_row == index), each)
    return scores


def processed(scores: Tensor, batch: SamplingBatch, held: Range, tp: Communicator) -> Tensor:
    """The distribution that tokens are drawn from.

    Limits (top-p, top-k, min-p) see the network's own distribution, as logits processors of the published code do; the
    schedule's temperature comes last. A request's temperature is not heeded: the schedule takes its place.

    Args:
        scores: [rows, columns] float32 from `biased`; not modified.
        batch: whose rows they are.
        held: the ids of the columns that stand for one.
        tp: the processes that hold the vocabulary.
    Returns:
        [rows, columns] float32, a new tensor.
    """
    scores = _restrict(scores, batch, held, tp)
    scheduled = [terms.temperature for terms in Windows.of(batch.windows).spans.groups.terms]
    temperature = np.array([1.0 if each is None else max(each, COLDEST) for each in scheduled])[batch.group_of_row]
    return scores / on_device(temperature, scores.device, torch.float32)[:, None]


def _add_bias(scores: Tensor, held: Range, rows: IntArray, params: SamplingParams) -> None:
    chosen = {token - held.start: bias for token, bias in params.logit_bias.items()}
    columns = [column for column in chosen if 0 <= column < held.length]
    if columns:
        at = on_device(rows, scores.device)[:, None], on_device(columns, scores.device, torch.int64)
        scores[at] += on_device([chosen[column] for column in columns], scores.device, torch.float32)


def _restrict(scores: Tensor, batch: SamplingBatch, held: Range, tp: Communicator) -> Tensor:
    params = batch.params
    limited = np.array([each.top_p < 1 or each.top_k is not None or each.min_p > 0 for each in params])
    limited = limited[batch.window_of_row]
    if not limited.any():
        return scores
    rows = on_device(np.flatnonzero(limited), scores.device)
    owners = [params[index] for index in batch.window_of_row[limited]]
    narrowed = restrict(
        scores[rows],
        on_device([each.top_p for each in owners], scores.device, torch.float32),
        on_device([min(each.top_k or held.size, held.size) for each in owners], scores.device, torch.int64),
        on_device([each.min_p for each in owners], scores.device, torch.float32),
        tp,
    )
    return scores.index_copy(0, rows, narrowed)
