"""What a training step hides and who may see what: masking ratios and attention masks of masked diffusion."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

BLOCK_SIZES = (4, 8, 16, 32)


@attrs.frozen(kw_only=True)
class Layout:
    """Where the parts of each sequence of a batch lie, in tokens from its start.

    Attributes:
        prompt, total: [batch] int64; the answer region (answer, then end-of-text padding) is `[prompt, total)`, the
            rest of the row is padding that nobody sees.
        results: [batch, seq] bool, the positions of computed numbers.
        fillable: [batch, seq] bool, the positions that training may hide.
    """

    prompt: Tensor
    total: Tensor
    results: Tensor
    fillable: Tensor


def answer_region(prompt: Tensor, total: Tensor, length: int) -> Tensor:
    """[batch, length] bool: positions from `prompt` to `total`, both [batch]."""
    at = torch.arange(length)
    return (at >= prompt[:, None]) & (at < total[:, None])


def draw_hidden(layout: Layout, block_size: int, blockwise: bool, generator: torch.Generator) -> Tensor:
    """[batch, seq] bool: answer positions that the model must fill in.

    Full-attention sequences draw one masking ratio each. Blockwise sequences draw one ratio per block, rising from
    left to right as in pipelined decoding. In a third of the sequences computed numbers are hidden more often than
    the words around them, which is the state that confident decoding reaches.
    """
    batch, seq = layout.results.shape
    blocks = -(-seq // block_size)
    ratio = torch.rand(batch, blocks if blockwise else 1, generator=generator).sort(dim=1).values
    ratio = ratio.repeat_interleave(block_size, dim=1)[:, :seq] if blockwise else ratio.expand(batch, seq)
    hard = (torch.rand(batch, 1, generator=generator) < 1 / 3) & layout.results
    ratio = torch.where(hard, ratio.clamp(min=0.7), ratio)
    hidden = (torch.rand(batch, seq, generator=generator) < ratio) & layout.fillable
    lonely = ~hidden.any(dim=1)
    hidden[lonely] = layout.fillable[lonely]
    return hidden


def full_attention(layout: Layout) -> Tensor:
    """[batch, 1, seq, seq] bool: every position of the sequence sees every other."""
    seq = layout.results.shape[1]
    end = layout.total[:, None].expand(-1, seq)
    return _visible_until(end)


def block_causal(layout: Layout, block_size: int) -> Tensor:
    """[batch, 1, seq, seq] bool: a position sees everything up to the end of its own block (multi_bd)."""
    seq = layout.results.shape[1]
    end = (torch.arange(seq) // block_size + 1) * block_size
    return _visible_until(torch.minimum(end[None, :], layout.total[:, None]))


def full_prefix(layout: Layout, block_size: int, prefill: bool) -> Tensor:
    """[batch, 1, seq, seq] bool: prompt positions see the whole prompt, the rest is block-causal (d2f).

    In decode form (`prefill=False`) prompt tokens that share a block with the answer see to the end of that block.
    """
    seq = layout.results.shape[1]
    at = torch.arange(seq)[None, :]
    prompt = layout.prompt[:, None]
    end = torch.minimum((at // block_size + 1) * block_size, layout.total[:, None])
    in_prefix = at < (prompt if prefill else prompt // block_size * block_size)
    return _visible_until(torch.where(in_prefix, prompt, end))


def bias(visible: Tensor) -> Tensor:
    """Who sees whom, bool, as what is added to scores in bfloat16: nothing, or next to minus infinity."""
    added = torch.zeros(visible.shape, dtype=torch.bfloat16)
    return added.masked_fill_(~visible, torch.finfo(added.dtype).min)


def _visible_until(end: Tensor) -> Tensor:
    return (torch.arange(end.shape[1])[None, None, :] < end[:, :, None])[:, None]
