"""Decoders that are unusual, and right: broken ones are made of them, and the checks must not mistake them."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import Tensor, nn

from diffulex_core.context import BuildContext, ForwardContext
from diffulex_core.layers.decoder import Decoder
from diffulex_core.layers.rope import Rotation
from diffulex_core.layers.spec import DecoderSpec


def through_layers(network: Decoder, hidden: Tensor, rotation: Rotation, ctx: ForwardContext) -> Tensor:
    """What the layers and the last norm make of embedded rows."""
    addend: Tensor | None = None
    for layer in network.layers:
        hidden, addend = layer(hidden, addend, rotation, ctx)
    final: Tensor = network.final_norm.after(hidden, addend)[1]
    return final


class Conditioned(Decoder):
    """Rows that are not final read what was believed of them, and are told so by a scalar."""

    def forward(self, input_ids: Tensor, positions: Tensor, ctx: ForwardContext) -> Tensor:
        rotation, hidden = self.rope.rotation(positions), self.embed(input_ids)
        provisional = torch.zeros_like(input_ids, dtype=torch.bool) if ctx.final is None else ~ctx.final
        if ctx.soft is not None:
            hidden = hidden + ctx.soft.over(torch.zeros_like(hidden)) * provisional[:, None]
        hidden = torch.where(provisional[:, None], 1.5 * hidden, hidden)
        return through_layers(self, hidden, rotation, ctx)

    def soft_embeddings(self, logits: Tensor) -> Tensor:
        """Every process takes the softmax over all ids, and adds the part of those that it holds."""
        tp, held = self.embed.tp, self.embed.held
        whole = torch.cat(tp.gather(logits.float()).unbind(), dim=-1)[:, : self.vocab_size]
        shares = whole.softmax(-1)[:, held.start : held.start + held.length].to(self.embed.weight.dtype)
        return tp.sum(shares @ self.embed.weight[: held.length])


class SlidingLayers(Decoder):
    """The first layer sees seven tokens, the last one everything."""

    def __init__(self, spec: DecoderSpec, ctx: BuildContext) -> None:
        super().__init__(spec, ctx)
        self.layers[0].attn.kind = 1

    @property
    def windows(self) -> tuple[int | None, ...]:
        return (None, 7)


class OwnAttention(Decoder):
    """Asks no backend: it writes and reads the pages itself, in fp32."""

    def forward(self, input_ids: Tensor, positions: Tensor, ctx: ForwardContext) -> Tensor:
        return super().forward(input_ids, positions, attrs.evolve(ctx, backend=_Own()))


class _Own:
    def attend(self, query: Tensor, key_pages: Tensor, value_pages: Tensor, batch: Any, scale: float) -> Tensor:
        out = torch.zeros_like(query)
        group = query.shape[1] // key_pages.shape[2]
        for row, (start, end) in enumerate(zip(batch.key_start.tolist(), batch.key_end.tolist(), strict=True)):
            at = torch.arange(start, end)
            pages = batch.page_tables[batch.row_sequence[row], at // batch.page_size]
            key, value = (
                each[pages, at % batch.page_size].float().repeat_interleave(group, 1)
                for each in (key_pages, value_pages)
            )
            weights = (torch.einsum("hd,khd->hk", query[row].float(), key) * scale).softmax(-1)
            out[row] = torch.einsum("hk,khd->hd", weights, value).to(query.dtype)
        return out


class LearnedPositions(Decoder):
    """Adds an embedding of the position instead of rotating."""

    def __init__(self, spec: DecoderSpec, ctx: BuildContext) -> None:
        super().__init__(spec, ctx)
        self.places = nn.Parameter(torch.empty(64, spec.hidden_size, dtype=ctx.dtype, device=ctx.device), False)

    def forward(self, input_ids: Tensor, positions: Tensor, ctx: ForwardContext) -> Tensor:
        rotation = self.rope.rotation(torch.zeros_like(positions))
        hidden = self.embed(input_ids)
        if ctx.soft is not None:
            hidden = ctx.soft.over(hidden)
        hidden = hidden + self.places[positions]
        return through_layers(self, hidden, rotation, ctx)
