"""Canvases for training: where they lie, who sees whom, and the noise in them."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from diffulex_tiny.recipe.stream import Batch


@attrs.frozen(kw_only=True)
class Canvases:
    """Some canvases of each row of a batch, side by side behind the row's encoded tokens.

    Attributes:
        encoded: [batch, n] int64, the clean tokens that the encoder reads.
        clean: [batch, m] int64, the clean tokens of the canvases.
        fillable: [batch, m] bool, which of them may be noise.
        positions: [batch, n + m] int64.
        visible: [batch, n + m, n + m] bool: encoder rows are causal, a canvas sees itself and what precedes it.
        canvas: [m] int64, which canvas a position belongs to.
    """

    encoded: Tensor
    clean: Tensor
    fillable: Tensor
    positions: Tensor
    visible: Tensor
    canvas: Tensor


def most(batch: Batch, length: int) -> int:
    """Canvases that the longest answer of a batch takes, with the end of text."""
    return int((-(-(batch.layout.total - batch.layout.prompt) // length)).max())


def draw(batch: Batch, count: int, length: int, generator: torch.Generator, index: int | None = None) -> Canvases:
    """`count` canvases of `length` tokens for each row, the `index`-th of its answer or random ones.

    What lies behind the answer is end of text, which `ids` are padded with. Rows without a prompt are drills: their
    canvases stand side by side from the start.
    """
    layout, ids = batch.layout, batch.ids
    rows, width = ids.shape
    taken = -(-(layout.total - layout.prompt) // length)
    if index is None:
        which = (torch.rand(rows, count, generator=generator) * taken[:, None]).long()
    else:
        which = torch.full((rows, count), index)
    starts = layout.prompt[:, None] + which * length  # [rows, count]
    padding = ids[:, -1:].expand(rows, max(0, int(starts.max()) + length - width))
    ids = torch.cat((ids, padding), dim=1)
    told = torch.cat((layout.fillable, layout.fillable[:, -1:].expand(padding.shape)), dim=1)
    at = (starts[:, :, None] + torch.arange(length)).flatten(1)  # [rows, count * length]
    encoded = ids[:, : int(starts.max())]
    n, m = encoded.shape[1], at.shape[1]
    canvas = torch.arange(count).repeat_interleave(length)
    visible = torch.zeros(rows, n + m, n + m, dtype=torch.bool)
    visible[:, :n, :n] = torch.ones(n, n, dtype=torch.bool).tril()
    visible[:, n:, :n] = torch.arange(n) < starts.repeat_interleave(length, dim=1)[:, :, None]
    visible[:, n:, n:] = canvas[:, None] == canvas
    fillable = told.gather(1, at) | ((at >= layout.total[:, None]) & (layout.prompt > 0)[:, None])
    return Canvases(
        encoded=encoded,
        clean=ids.gather(1, at),
        fillable=fillable,
        positions=torch.cat((torch.arange(n).expand(rows, n), at), dim=1),
        visible=visible,
        canvas=canvas,
    )


@attrs.frozen(kw_only=True)
class Noise:
    """What undecided positions hold: any token, or in some share of them `mask_id`, as in the network to start from."""

    vocab_size: int
    mask_id: int
    masks: float

    def like(self, tokens: Tensor, generator: torch.Generator) -> Tensor:
        """Noise of the shape of `tokens`."""
        noise = torch.randint(self.vocab_size, tokens.shape, generator=generator)
        return torch.where(torch.rand(tokens.shape, generator=generator) < self.masks, self.mask_id, noise)


def noised(drawn: Canvases, noise: Noise, generator: torch.Generator) -> Tensor:
    """[batch, m] the canvases with a random share of their tokens replaced by noise; a quarter of them wholly."""
    count = int(drawn.canvas[-1]) + 1
    share = torch.rand(len(drawn.clean), count, generator=generator) * 4 / 3
    replaced = torch.rand(drawn.clean.shape, generator=generator) < share[:, drawn.canvas]
    return torch.where(replaced & drawn.fillable, noise.like(drawn.clean, generator), drawn.clean)


def sampled(drawn: Canvases, logits: Tensor, noise: Noise, bound: float, generator: torch.Generator) -> Tensor:
    """[batch, m] the canvases after one step of the published sampler: kept tokens are drawn ones, the rest is noise.

    Args:
        logits: [batch, m, vocab], already tempered.
        bound: nats that the tokens kept before the least sure one may hold in each canvas.
    """
    shares = logits.softmax(-1)
    entropy = -(shares * shares.clamp(min=1e-12).log()).sum(-1)
    count = int(drawn.canvas[-1]) + 1
    ordered, order = entropy.unflatten(1, (count, -1)).sort(dim=-1)
    kept = torch.zeros_like(ordered, dtype=torch.bool)
    kept = kept.scatter(-1, order, ordered.cumsum(-1) - ordered <= bound).flatten(1)
    tokens = torch.multinomial(shares.flatten(0, 1), 1, generator=generator).view(kept.shape)
    return torch.where(drawn.fillable, torch.where(kept, tokens, noise.like(tokens, generator)), drawn.clean)
