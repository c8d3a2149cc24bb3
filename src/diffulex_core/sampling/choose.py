"""Choosing one token for each row among the columns that this process holds."""

from __future__ import annotations

import torch
from torch import Tensor

from diffulex_core.distributed import ALONE, Communicator

_BELOW_ONE = 1 - 2.0**-53


def greedy(logits: Tensor) -> Tensor:
    """[rows, columns] -> [rows] int64: the most probable column, ties to the highest; 0 where a row holds NaN."""
    best = logits.amax(dim=1, keepdim=True)
    # Numbers below 2^24 are exact in fp32, in which torch compares and searches faster than in bool and int64.
    ids = torch.arange(logits.shape[1], device=logits.device, dtype=torch.float32)
    is_best = torch.eq(logits, best, out=torch.empty(logits.shape, device=logits.device))
    return is_best.mul_(ids).amax(dim=1).long()


def draw(logits: Tensor, uniform: Tensor, tp: Communicator = ALONE) -> Tensor:
    """Sample by inverting the cumulative distribution; a collective, which moves one number for each row.

    Args:
        logits: [rows, columns] float32.
        uniform: [rows] float64 in [0, 1).
        tp: the processes that hold the vocabulary, in the order of their columns.
    Returns:
        [rows] int64 columns, -1 where another process holds the token; one of probability zero is never chosen.
    """
    probabilities = logits.double().softmax(dim=1)
    log_masses = tp.gather(_log_mass(logits, probabilities))  # [ranks, rows]
    masses = (log_masses - log_masses.amax(dim=0)).exp()
    ends = masses.cumsum(dim=0)
    target = uniform * ends[-1]
    owner = (target >= ends).sum(dim=0)
    before = ends[tp.rank] - masses[tp.rank]
    fraction = ((target - before) / masses[tp.rank]).clamp(0, _BELOW_ONE)
    cumulative = probabilities.cumsum(dim=1)
    column = torch.searchsorted(cumulative, fraction[:, None] * cumulative[:, -1:], right=True).squeeze(1)
    return torch.where(owner == tp.rank, column.clamp(max=logits.shape[1] - 1), -1)


def _log_mass(logits: Tensor, probabilities: Tensor) -> Tensor:
    """[rows] float64: logarithm of the sum of exponentials, from one token's score and its probability.

    It is minus infinity for rows without any possible token, whose probabilities are NaN.
    """
    probability, column = probabilities.max(dim=1)
    score = logits.gather(1, column[:, None]).squeeze(1).double()
    return torch.where(score == -torch.inf, score, score - probability.log())
