"""A moment of blockwise decoding: what is committed, what is being decided, and what of that is wrong."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from diffulex_tiny.recipe.corruption import Layout

FARTHEST = 32
"""Tokens that a window spans at most, unless one block is larger."""


@attrs.frozen(kw_only=True)
class Moment:
    """One moment for each row of a batch.

    Attributes:
        running: [batch, seq] bool, positions that the blocks being decoded may still change.
        hidden: [batch, seq] bool, those of them that are masked.
    """

    running: Tensor
    hidden: Tensor


def draw_moment(layout: Layout, block_size: int, generator: torch.Generator) -> Moment:
    """Blocks before a random one are final; in a few from there on, masks get more from block to block.

    In a third of the rows computed numbers are masked more often than the words around them, which is the state that
    confident decoding reaches.
    """
    batch, seq = layout.results.shape
    block = (torch.arange(seq) // block_size)[None]
    first = layout.prompt // block_size
    last = (layout.total - 1) // block_size
    front = first + (torch.rand(batch, generator=generator) * (last - first + 1)).long()
    widest = max(1, FARTHEST // block_size)
    width = 1 + (torch.rand(batch, generator=generator) * widest).long()
    behind = block - front[:, None]
    running = layout.fillable & (behind >= 0) & (behind < width[:, None])
    draws = torch.rand(batch, widest, generator=generator)
    draws = torch.where(torch.arange(widest) < width[:, None], draws, 1.0).sort(dim=1).values
    ratio = draws.gather(1, behind.clamp(0, widest - 1).expand(batch, seq))
    hard = (torch.rand(batch, 1, generator=generator) < 1 / 3) & layout.results
    ratio = torch.where(hard, ratio.clamp(min=0.8), ratio)
    hidden = running & (torch.rand(batch, seq, generator=generator) < ratio)
    # What lies behind the window does not exist yet, or is all masks.
    return Moment(running=running, hidden=hidden | (layout.fillable & (behind >= width[:, None])))


def draw_wrong(ids: Tensor, moment: Moment, numbers: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Which decided tokens of the window are replaced, [batch, seq] bool, and by what, [batch, seq] int64.

    Half of the rows are left alone. A number is mostly replaced by another number, a word by a word from elsewhere in
    the batch; a few by any token.

    Args:
        numbers: [vocab] bool, ids of numbers that begin with a space.
    """
    batch, seq = ids.shape
    rate = torch.rand(batch, 1, generator=generator) * 0.3
    rate = torch.where(torch.rand(batch, 1, generator=generator) < 0.5, rate, 0.0)
    wrong = moment.running & ~moment.hidden & (torch.rand(batch, seq, generator=generator) < rate)
    elsewhere = ids.flatten()[torch.randint(ids.numel(), ids.shape, generator=generator)]
    listed = numbers.nonzero().squeeze(1)
    number = listed[torch.randint(len(listed), ids.shape, generator=generator)]
    anything = torch.randint(len(numbers), ids.shape, generator=generator)
    kind = torch.rand(ids.shape, generator=generator)
    other = torch.where(numbers[ids] & (kind < 0.8), number, elsewhere)
    return wrong, torch.where(kind > 0.95, anything, other)
