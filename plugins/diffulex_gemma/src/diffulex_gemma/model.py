"""DiffusionGemma's text network: one stack of layers that is encoder to final rows and decoder to the others."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from diffulex_core.context import BuildContext, ForwardContext
from diffulex_core.distributed.ranges import even_range, kv_head_range
from diffulex_core.layers.linear import Embedding, VocabHead
from diffulex_core.layers.norm import RMSNorm
from diffulex_core.layers.rope import Rope
from diffulex_core.plugin import DiffusionModel, KVGeometry
from diffulex_gemma.config import gemma_spec
from diffulex_gemma.layers import Layer, SelfConditioning
from diffulex_gemma.spec import GemmaSpec


def build(config: Mapping[str, object], ctx: BuildContext) -> DiffusionModel:
    """The network that a config.json describes. Raises ConfigError as `gemma_spec` does."""
    return DiffusionGemma(gemma_spec(config), ctx)


class DiffusionGemma(nn.Module):
    """A `DiffusionModel` that is `SelfConditioned`.

    Final rows enter as scaled embeddings, rows of a canvas through the self-conditioning; the layers differ between the
    two in one scalar each, and what each row sees is the attention pattern's business.
    """

    def __init__(self, spec: GemmaSpec, ctx: BuildContext) -> None:
        super().__init__()
        self.spec, self.tp = spec, ctx.tp
        self.embed = Embedding(ctx, spec.vocab_size, spec.hidden_size)
        self.embed_scale = float(torch.tensor(spec.hidden_size**0.5).to(ctx.dtype))  # bf16: 53.0 for 2816, not 53.07
        self.self_conditioning = SelfConditioning(ctx, spec)
        self.layers = nn.ModuleList(Layer(ctx, spec, layer) for layer in range(len(spec.full_layers)))
        self.final_norm = RMSNorm(ctx, spec.hidden_size, spec.norm_eps, wide=True)
        self.lm_head = VocabHead(ctx, spec.hidden_size, spec.vocab_size)
        self.lm_head.weight = self.embed.weight
        self.ropes = [
            Rope(theta=kind.rope_theta, rotary_dim=kind.head_dim, turning=kind.rope_pairs) for kind in spec.kinds
        ]

    @property
    def kv_geometry(self) -> tuple[KVGeometry, ...]:
        """The heads that this process holds; full layers have fewer and wider ones than sliding layers."""
        heads, tp = self.spec.num_heads, self.tp
        kinds = [
            KVGeometry(
                num_heads=even_range(heads, tp, "the number of query heads").length,
                num_kv_heads=kv_head_range(heads, kind.num_kv_heads, tp).length,
                head_dim=kind.head_dim,
            )
            for kind in self.spec.kinds
        ]
        return tuple(kinds[full] for full in self.spec.full_layers)

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""
        return self.spec.vocab_size

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Sliding layers, then full ones."""
        return tuple(kind.window for kind in self.spec.kinds)

    def forward(self, input_ids: Tensor, positions: Tensor, ctx: ForwardContext) -> Tensor:
        """[rows] ids and positions -> [rows, hidden] after the final norm."""
        rotations = [rope.rotation(positions) for rope in self.ropes]
        embedded = self.embed(input_ids) * self.embed_scale
        final = torch.ones_like(input_ids, dtype=torch.bool) if ctx.final is None else ctx.final
        final = final[:, None]
        believed = None if ctx.soft is None else ctx.soft.over(torch.zeros_like(embedded))
        hidden = torch.where(final, embedded, self.self_conditioning(embedded, believed))
        for layer, full in zip(self.layers, self.spec.full_layers, strict=True):
            hidden = layer(hidden, final, rotations[full], ctx)
        out: Tensor = self.final_norm(hidden)
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """[rows, hidden] -> [rows, vocab / processes] float32, softly capped."""
        return self.spec.softcap * torch.tanh(self.lm_head(hidden).float() / self.spec.softcap)

    def soft_embeddings(self, logits: Tensor) -> Tensor:
        """See `SelfConditioned`. Logits are rounded to the weights' dtype first, as the published sampler does."""
        weight, held = self.embed.weight, self.embed.held.length
        rounded = logits.to(weight.dtype).float()
        if held < len(weight):
            rounded = rounded.masked_fill(torch.arange(len(weight), device=logits.device) >= held, -torch.inf)
        exps = (rounded - self.tp.max(rounded.amax(-1, keepdim=True))).exp()
        shares = exps / self.tp.sum(exps.sum(-1, keepdim=True))
        return self.tp.sum(shares.to(weight.dtype) @ weight) * self.embed_scale
