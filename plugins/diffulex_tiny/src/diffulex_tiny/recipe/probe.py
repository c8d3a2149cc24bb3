"""A quick look at a network in training: unseen problems decoded block by block, without an engine."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffulex_tiny import problems
from diffulex_tiny.recipe import corruption
from diffulex_tiny.recipe.stream import Batch, Stream

ACCEPT = 0.9
BLOCK_SIZE = 4
ASKED: tuple[tuple[problems.Task, int], ...] = (("two_step", 100), ("long", 20))
"""Problems of each task."""
Predict = Callable[[Tensor, Tensor], Tensor]
"""[batch, seq] ids with masks and who sees whom -> [batch, seq, vocab] logits of the token at each position."""


def told(stream: Stream, predict: Predict, mask_id: int) -> str:
    """A line that says how much is solved block by block, under a block-causal mask."""
    shares = []
    for task, count in ASKED:
        batch = stream.of(list(problems.problems(2, "eval", count, task)), [BLOCK_SIZE] * count)
        visible = corruption.block_causal(batch.layout, BLOCK_SIZE)
        share = solved(batch, predict, visible, mask_id, BLOCK_SIZE)
        shares.append(f"{task} {share:.2f}")
    return "exact on unseen problems: " + ", ".join(shares)


@torch.no_grad()
def solved(batch: Batch, predict: Predict, visible: Tensor, mask_id: int, block_size: int) -> float:
    """Share of rows that are exact when the leftmost unfinished block of each is filled, confident tokens first."""
    ids = torch.where(batch.layout.fillable, mask_id, batch.ids)
    block = torch.arange(ids.shape[1]) // block_size
    while True:
        masked = ids == mask_id
        if not masked.any():
            break
        current = torch.where(masked, block, len(block)).amin(dim=1, keepdim=True)
        open_here = masked & (block == current)
        logits = predict(ids, visible).float()
        logits[..., mask_id] = -torch.inf
        confidence, token = logits.softmax(-1).max(-1)
        confidence = torch.where(open_here, confidence, -1.0)
        best = torch.zeros_like(masked).scatter(1, confidence.argmax(1, keepdim=True), value=True)
        ids = torch.where(open_here & ((confidence > ACCEPT) | best), token, ids)
    return float((ids == batch.ids).all(dim=1).float().mean())
