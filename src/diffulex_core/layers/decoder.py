"""The generic pre-norm decoder over flat, ragged rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffulex_core.context import BuildContext, ForwardContext
from diffulex_core.distributed.ranges import even_range, kv_head_range
from diffulex_core.layers.attention import SelfAttention
from diffulex_core.layers.linear import Embedding, VocabHead
from diffulex_core.layers.mlp import GatedMLP
from diffulex_core.layers.moe.layer import MoE
from diffulex_core.layers.norm import RMSNorm
from diffulex_core.layers.rope import Rope, Rotation
from diffulex_core.layers.spec import DecoderSpec
from diffulex_core.sampling.facts import Facts, Wanted
from diffulex_core.types import KVGeometry

_LEAST_NORM = 1e-12


class Decoder(nn.Module):
    """Embedding, blocks, final norm, and a head that is run apart, on the rows that need it.

    A `DiffusionModel`, a `SoftInputNetwork`, and a `SelectingNetwork`.
    """

    def __init__(self, spec: DecoderSpec, ctx: BuildContext) -> None:
        super().__init__()
        self.spec, self.ranks = spec, ctx.tp.size
        self.num_heads = even_range(spec.num_heads, ctx.tp, "the number of query heads").length
        self.num_kv_heads = kv_head_range(spec.num_heads, spec.num_kv_heads, ctx.tp).length
        self.rope = Rope(theta=spec.rope_theta, rotary_dim=spec.rotary_dim)
        self.embed = Embedding(ctx, spec.vocab_size, spec.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(ctx, spec, layer) for layer in range(spec.num_layers))
        self.final_norm = RMSNorm(ctx, spec.hidden_size, spec.norm_eps)
        self.lm_head = VocabHead(ctx, spec.hidden_size, spec.vocab_size, bias=spec.head_bias)
        if spec.tie_embeddings:
            self.lm_head.weight = self.embed.weight

    @property
    def kv_geometry(self) -> tuple[KVGeometry, ...]:
        """Equal for all layers: the heads that this process holds."""
        geometry = KVGeometry(
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.spec.head_dim,
            copies=max(1, self.ranks // self.spec.num_kv_heads),
        )
        return (geometry,) * self.spec.num_layers

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""
        return self.spec.vocab_size

    @property
    def windows(self) -> tuple[int | None, ...]:
        """One kind of layer, without a sliding window."""
        return (None,)

    def forward(self, input_ids: Tensor, positions: Tensor, ctx: ForwardContext) -> Tensor:
        """[rows] ids and positions -> [rows, hidden] after the final norm."""
        rotation = self.rope.rotation(positions)
        hidden: Tensor = self.embed(input_ids)
        if ctx.soft is not None:
            hidden = ctx.soft.over(hidden)
        addend: Tensor | None = None
        for layer in self.layers:
            hidden, addend = layer(hidden, addend, rotation, ctx)
        final: Tensor = self.final_norm.after(hidden, addend)[1]
        return final

    def blend(self, ids: Tensor, weights: Tensor, match_norm: Tensor) -> Tensor:
        """See `SoftInputNetwork`. One token at a time, so that a row's bits do not depend on how many others have."""
        if self.embed.kernels is not None and self.ranks == 1:
            return self.embed.kernels.blend(self.embed.weight, ids, weights, match_norm)
        total = torch.zeros(len(ids), self.spec.hidden_size, device=ids.device)
        norm = torch.zeros(len(ids), 1, device=ids.device)
        for tokens, share in zip(ids.unbind(1), weights.unbind(1), strict=True):
            embedded = self.embed(tokens).float()
            total += share[:, None] * embedded
            norm += share[:, None] * embedded.norm(dim=1, keepdim=True)
        scale = norm / total.norm(dim=1, keepdim=True).clamp(min=_LEAST_NORM)
        return torch.where(match_norm[:, None], total * scale, total).to(self.embed.weight.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """[rows, hidden] -> [rows, vocab / processes]."""
        out: Tensor = self.lm_head(hidden)
        return out

    @property
    def columns(self) -> int:
        """See `SelectingNetwork`."""
        return len(self.lm_head.weight)

    @property
    def selects(self) -> bool:
        """See `SelectingNetwork`."""
        return self.lm_head.selects

    def select(self, hidden: Tensor, wanted: Wanted) -> Facts:
        """See `SelectingNetwork`."""
        return self.lm_head.select(hidden, wanted)


class DecoderLayer(nn.Module):
    """`x += attn(norm(x)); x += mlp(norm(x))`, where the MLP may be a mixture of experts.

    What a layer adds last is added by the next one, along with that one's norm.
    """

    def __init__(self, ctx: BuildContext, spec: DecoderSpec, layer: int) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(ctx, spec.hidden_size, spec.norm_eps)
        self.attn = SelfAttention(ctx, spec, layer)
        self.ff_norm = RMSNorm(ctx, spec.hidden_size, spec.norm_eps)
        self.mlp: nn.Module = (
            MoE(ctx, spec.hidden_size, spec.moe)
            if spec.moe is not None and layer in spec.sparse_layers
            else GatedMLP(ctx, spec.hidden_size, spec.ffn_size, bias=spec.mlp_bias)
        )

    def forward(
        self, x: Tensor, addend: Tensor | None, rotation: Rotation, ctx: ForwardContext
    ) -> tuple[Tensor, Tensor]:
        """[rows, hidden] and what is to be added to it -> the same two, after this layer."""
        x, normed = self.attn_norm.after(x, addend)
        x, normed = self.ff_norm.after(x, self.attn(normed, rotation, ctx))
        return x, self.mlp(normed)
