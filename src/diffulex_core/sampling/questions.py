"""What a step may ask about its rows besides one token: the most probable ones, and the probability of a given one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffulex_core.distributed import Communicator
from diffulex_core.distributed.ranges import Range
from diffulex_core.sampling.choose import greedy
from diffulex_core.sampling.sums import log_sum
from diffulex_core.transfer import on_device
from diffulex_core.types import Alternatives, FloatArray, Questions


def discourage(scores: Tensor, held: Range, questions: Questions) -> None:
    """Lower the discouraged tokens' scores in place; `scores` [rows, columns] are this process's."""
    local = questions.discouraged - held.start
    rows = np.flatnonzero((local >= 0) & (local < held.length))
    if len(rows):
        at = on_device(rows, scores.device)
        penalty = on_device(questions.penalty[rows].astype(np.float32), scores.device)
        scores[at, on_device(local[rows], scores.device)] -= penalty


def restore(scores: Tensor, logits: Tensor, held: Range, questions: Questions) -> None:
    """Undo in place what was done to the scores of rows that are answered from the network's own distribution.

    Args:
        scores: [rows, columns] float32, this process's.
        logits: [rows, columns or more] as the network gave them.
        held: the ids of the columns.
    """
    if questions.raw is None or not questions.raw.any():
        return
    rows = on_device(np.flatnonzero(questions.raw), scores.device)
    scores[rows, : held.length] = logits[rows, : held.length].float()


def answer(scores: Tensor, held: Range, questions: Questions, tp: Communicator) -> Tensor:
    """What the questions ask for; a collective, which moves a few numbers for each row.

    Args:
        scores: [rows, columns] float32, this process's part of the distribution.
        held: the ids of the columns.
        questions: of these rows.
        tp: the processes that hold the vocabulary.
    Returns:
        [1 + 2 * questions.most, rows] float64: log probability of the watched token, then the most probable tokens,
        then their probabilities.
    """
    tokens, logs = log_probabilities(scores, held, on_device(questions.watched, scores.device), questions.most, tp)
    return answered(tokens, logs)


def answered(tokens: Tensor, logs: Tensor) -> Tensor:
    """What `answer` returns, from what `log_probabilities` does."""
    return torch.cat((logs[:1], tokens, logs[1:].exp()))


def log_probabilities(
    scores: Tensor, held: Range, watched: Tensor, most: int, tp: Communicator
) -> tuple[Tensor, Tensor]:
    """How probable a given token and the most probable ones are; a collective, as `answer`.

    Args:
        watched: [rows] int64 ids, on the scores' device; -1 for none.
        most: so many of the most probable tokens.
    Returns:
        tokens [most, rows] and log probabilities [1 + most, rows], the watched token's first, both float64.
    """
    local = watched - held.start
    here = (local >= 0) & (local < held.length)
    asked = scores.gather(1, local.clamp(0, scores.shape[1] - 1)[:, None]).squeeze(1)
    rest, tokens, values = scores.clone(), list[Tensor](), list[Tensor]()
    for _ in range(most):
        best = greedy(rest)[:, None]
        tokens.append(best.squeeze(1).double() + held.start)
        values.append(rest.gather(1, best).squeeze(1).double())
        rest.scatter_(1, best, -torch.inf)
    return ranked(log_sum(scores), asked.masked_fill(~here, -torch.inf), tokens, values, tp)


def ranked(
    log_sums: Tensor, asked: Tensor, tokens: Sequence[Tensor], values: Sequence[Tensor], tp: Communicator
) -> tuple[Tensor, Tensor]:
    """As `log_probabilities`, from what this process found in its columns; a collective.

    Args:
        log_sums: [rows] float64.
        asked: [rows] score of the given token, minus infinity where another process has it.
        tokens, values: [rows] each, ids and scores of the most probable ones.
    """
    most = len(tokens)
    heard = tp.gather(torch.stack([log_sums, asked.double(), *tokens, *values]))  # [ranks, 2 + 2 most, rows]
    found, offered = heard[:, 2 : 2 + most].flatten(0, 1), heard[:, 2 + most :].flatten(0, 1)
    order = found.argsort(dim=0, descending=True, stable=True)
    order = order.gather(0, offered.gather(0, order).argsort(dim=0, descending=True, stable=True))[:most]
    logs = torch.cat((heard[:, 1].amax(dim=0)[None], offered.gather(0, order))) - heard[:, 0].logsumexp(dim=0)
    return found.gather(0, order), logs


def watched(answers: NDArray[np.float64], questions: Questions | None) -> FloatArray | None:
    """[n] probabilities of the watched tokens, out of `answer`'s result for n rows."""
    return None if questions is None else np.exp(answers[0]).astype(np.float32)


def watched_log(answers: NDArray[np.float64], questions: Questions | None) -> FloatArray | None:
    """[n] their logarithms."""
    return None if questions is None else answers[0]


def alternatives(answers: NDArray[np.float64], questions: Questions | None) -> Alternatives | None:
    """The most probable tokens, out of `answer`'s result for n rows."""
    if questions is None or not questions.most:
        return None
    tokens, probabilities = answers[1 : 1 + questions.most], answers[1 + questions.most :]
    return Alternatives(tokens=tokens.T.astype(np.int64), probabilities=probabilities.T.astype(np.float32))
