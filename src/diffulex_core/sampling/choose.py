"""Choosing one token for each row and measuring how sure the model is of it."""

from __future__ import annotations

import torch
from torch import Tensor


def greedy(logits: Tensor) -> Tensor:
    """[rows, vocab] -> [rows] int64: the most probable token, ties to the highest id; 0 where a row holds NaN."""
    best = logits.amax(dim=1, keepdim=True)
    ids = torch.arange(logits.shape[1], device=logits.device)
    return torch.where(logits == best, ids, 0).amax(dim=1)


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """Sample by inverting the cumulative distribution.

    Args:
        logits: [rows, vocab] float32.
        uniform: [rows] float64 in [0, 1).
    Returns:
        [rows] int64 token ids; a token of probability zero is never chosen.
    """
    cumulative = logits.double().softmax(dim=1).cumsum(dim=1)
    target = uniform[:, None] * cumulative[:, -1:]
    token = torch.searchsorted(cumulative, target, right=True).squeeze(1)
    return token.clamp(max=logits.shape[1] - 1)


def probability(logits: Tensor, tokens: Tensor) -> Tensor:
    """[rows] float32: probability of each row's token, accumulated in float32."""
    total = _never_alone(logits).logsumexp(dim=1)[: len(logits)]
    return (logits.gather(1, tokens[:, None]).squeeze(1) - total).exp()


def margin(logits: Tensor) -> Tensor:
    """[rows] float32: probability of the most probable token minus that of the second."""
    top = logits.softmax(dim=1).topk(min(2, logits.shape[1]), dim=1).values
    return top[:, 0] - top[:, -1] * (top.shape[1] > 1)


def inverse_perplexity(logits: Tensor) -> Tensor:
    """[rows] float32 in (0, 1]: exp of the negative entropy, so that it can be compared with a threshold."""
    logs = logits.log_softmax(dim=1)
    terms = torch.where(logs.isfinite(), logs.exp() * logs, 0.0)
    return _never_alone(terms).sum(dim=1)[: len(logits)].exp().clamp(max=1)


def _never_alone(rows: Tensor) -> Tensor:
    """The rows, or two copies of a single one: torch splits a single sum among threads, which changes its bits."""
    return rows.expand(2, -1) if len(rows) == 1 else rows
