"""Restricting a distribution before a token is chosen: top-p, top-k and min-p with per-row settings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffulex_core.distributed import ALONE, Communicator
from diffulex_core.sampling import divided
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.transfer import on_device


def limits(params: Sequence[SamplingParams], vocab_size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """top_p, top_k and min_p as `restrict` takes them, for rows with these parameters."""
    return (
        on_device([each.top_p for each in params], device, torch.float32),
        on_device([min(each.top_k or vocab_size, vocab_size) for each in params], device, torch.int64),
        on_device([each.min_p for each in params], device, torch.float32),
    )


def restrict(logits: Tensor, top_p: Tensor, top_k: Tensor, min_p: Tensor, tp: Communicator = ALONE) -> Tensor:
    """Set the logits of excluded tokens to -inf.

    Top-p is applied first, then top-k, then min-p; at least the most probable token always stays. Among equal
    logits the higher token id counts as the more probable one, as in greedy choice.

    Args:
        logits: [rows, columns] float32, those that this process holds.
        top_p: [rows] float32 in (0, 1]: smallest set whose cumulative probability exceeds it; 1 keeps all.
        top_k: [rows] int64 >= 1; vocab or more keeps all.
        min_p: [rows] float32 in [0, 1]: share of the most probable token's probability; 0 keeps all.
        tp: the processes that hold the vocabulary; a collective when there are several.
    Returns:
        [rows, columns] float32, a new tensor.
    """
    if tp.size > 1:
        return divided.restrict(logits, top_p, top_k, min_p, tp)
    vocab = logits.shape[1]
    ordered, flipped = logits.flip(1).sort(dim=1, descending=True, stable=True)
    ids = vocab - 1 - flipped
    probabilities = ordered.softmax(dim=1)
    before = probabilities.cumsum(dim=1) - probabilities
    rank = torch.arange(vocab, device=logits.device)
    keep = (before <= top_p[:, None]) | (top_p[:, None] >= 1)
    keep &= rank < top_k[:, None]
    keep &= probabilities >= min_p[:, None] * probabilities[:, :1]
    keep[:, 0] = True
    return torch.full_like(logits, -torch.inf).scatter(1, ids, ordered.masked_fill(~keep, -torch.inf))
