"""DiffusionGemma's text network for training: one pass over encoder rows and canvases, whatever sees whatever.

The published network runs its encoder and its decoder one after the other, with a cache between them; as both have the
same weights, a mask and a flag for each row say the same. Parameters have the names of the published decoder's. What a
Llama has not comes in with `share`: norms behind every branch and of queries, keys and values, and GELU for SiLU.
"""

from __future__ import annotations

import math

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional

from diffulex_tiny.recipe.easing import EasedNorm, eased_gelu


@attrs.frozen(kw_only=True)
class Shape:
    """Sizes of the network, as config.json calls them; all layers are sliding ones but the last, which is full."""

    vocab_size: int
    hidden_size: int = 128
    intermediate_size: int = 320
    num_hidden_layers: int = 5
    num_attention_heads: int = 4
    num_key_value_heads: int = 4
    num_global_key_value_heads: int = 1
    head_dim: int = 32
    global_head_dim: int = 64
    num_experts: int = 4
    top_k_experts: int = 2
    moe_intermediate_size: int = 64
    sliding_window: int = 256
    rope_theta: float = 10000.0
    global_rope_share: float = 0.5
    final_logit_softcapping: float = 30.0
    rms_norm_eps: float = 1e-6
    canvas_length: int = 32
    max_position_embeddings: int = 512


class Norm(nn.Module):
    """Root mean square 1, then a weight; in fp32 and cast back once."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return (normed(x, self.eps) * self.weight).to(x.dtype)


def normed(x: Tensor, eps: float) -> Tensor:
    """[..., width] of root mean square 1, in fp32."""
    wide = x.float()
    return wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)


class Rope:
    """Half-split rotary tables of one layer type; the pairs past `turning` pass through."""

    def __init__(self, theta: float, head_dim: int, share: float) -> None:
        pairs = head_dim // 2
        frequencies = theta ** (-2 * torch.arange(pairs, dtype=torch.float32) / head_dim)
        self._frequencies = torch.where(torch.arange(pairs) < int(share * pairs), frequencies, 0.0)

    def tables(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin, [batch, rows, 1, head_dim], of [batch, rows] positions."""
        angles = (positions[..., None] * self._frequencies).repeat(1, 1, 2)[:, :, None]
        return angles.cos(), angles.sin()


def turned(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """[batch, rows, heads, head_dim] with the rotation applied."""
    cos, sin = tables
    low, high = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-high, low), dim=-1) * sin).to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention with normalised heads and unscaled scores; full layers take their values from keys."""

    def __init__(self, shape: Shape, full: bool) -> None:
        super().__init__()
        self.head_dim = shape.global_head_dim if full else shape.head_dim
        kv_heads = shape.num_global_key_value_heads if full else shape.num_key_value_heads
        width, kv_width = shape.num_attention_heads * self.head_dim, kv_heads * self.head_dim
        self.q_proj = nn.Linear(shape.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, kv_width, bias=False)
        self.v_proj = None if full else nn.Linear(shape.hidden_size, kv_width, bias=False)
        self.o_proj = nn.Linear(width, shape.hidden_size, bias=False)
        # Scores are not scaled, so queries are.
        self.q_norm = EasedNorm(self.head_dim, shape.rms_norm_eps, start=self.head_dim**-0.5)
        self.k_norm = EasedNorm(self.head_dim, shape.rms_norm_eps)
        self.v_norm = EasedNorm(self.head_dim, shape.rms_norm_eps, weighted=False)
        self.shared = shape.num_attention_heads // kv_heads

    def forward(self, x: Tensor, tables: tuple[Tensor, Tensor], hidden: Tensor) -> Tensor:
        """[batch, rows, hidden] -> the same; `hidden` [batch, 1, rows, rows] is added to the scores."""
        q, k = (part(x).unflatten(-1, (-1, self.head_dim)) for part in (self.q_proj, self.k_proj))
        v = k if self.v_proj is None else self.v_proj(x).unflatten(-1, (-1, self.head_dim))
        q, k, v = turned(self.q_norm(q), tables), turned(self.k_norm(k), tables), self.v_norm(v)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        k, v = (part.repeat_interleave(self.shared, dim=1) for part in (k, v))
        shares = (q @ k.transpose(2, 3) + hidden).softmax(-1, dtype=torch.float32)
        out: Tensor = self.o_proj((shares.to(v.dtype) @ v).transpose(1, 2).flatten(2))
        return out


class GatedMLP(nn.Module):
    """down(gelu(gate(x)) * up(x))."""

    share = 0.0

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, width, bias=False)
        self.up_proj = nn.Linear(hidden_size, width, bias=False)
        self.down_proj = nn.Linear(width, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(eased_gelu(self.gate_proj(x), self.share) * self.up_proj(x))
        return out


class Router(nn.Module):
    """Scores experts from the residual stream."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.proj = nn.Linear(shape.hidden_size, shape.num_experts, bias=False)
        self.scale = nn.Parameter(torch.ones(shape.hidden_size))
        self.per_expert_scale = nn.Parameter(torch.ones(shape.num_experts))
        self.chosen, self.eps, self.factor = shape.top_k_experts, shape.rms_norm_eps, shape.hidden_size**-0.5
        self.imbalance = torch.zeros(())
        """How uneven the latest forward's choices were; 1 = even."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden] -> [..., experts] weight of each expert, 0 for those not chosen."""
        shares = self.proj(normed(x, self.eps) * self.scale * self.factor).softmax(-1, dtype=torch.float32)
        kept, ids = shares.topk(self.chosen, dim=-1)
        weights = torch.zeros_like(shares).scatter(-1, ids, kept / kept.sum(-1, keepdim=True))
        used = (weights > 0).float().flatten(0, -2).mean(0) / self.chosen
        self.imbalance = len(used) * (used * shares.flatten(0, -2).mean(0)).sum()
        return weights * self.per_expert_scale


class Experts(nn.Module):
    """All experts over all rows, weighted: with so few and so small ones that is cheaper than sorting rows."""

    share = 0.0

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        experts, width, hidden = shape.num_experts, shape.moe_intermediate_size, shape.hidden_size
        self.gate_up_proj = nn.Parameter(torch.randn(experts, 2 * width, hidden) * hidden**-0.5)
        self.down_proj = nn.Parameter(torch.randn(experts, hidden, width) * width**-0.5)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """[..., hidden] and [..., experts] -> [..., hidden]."""
        inner = functional.linear(x, self.gate_up_proj.flatten(0, 1)).unflatten(-1, (len(self.gate_up_proj), -1))
        gate, up = inner.chunk(2, dim=-1)
        inner = eased_gelu(gate, self.share) * up * weights[..., None].to(up.dtype)
        return functional.linear(inner.flatten(-2), self.down_proj.transpose(0, 1).flatten(1))


class Layer(nn.Module):
    """Attention, then a dense MLP and the experts side by side; every branch is normalised before and after."""

    def __init__(self, shape: Shape, full: bool) -> None:
        super().__init__()

        def norm() -> Norm:
            return Norm(shape.hidden_size, shape.rms_norm_eps)

        def eased() -> EasedNorm:
            return EasedNorm(shape.hidden_size, shape.rms_norm_eps)

        self.self_attn = Attention(shape, full)
        self.mlp = GatedMLP(shape.hidden_size, shape.intermediate_size)
        self.router, self.experts = Router(shape), Experts(shape)
        self.input_layernorm, self.post_attention_layernorm = norm(), eased()
        self.pre_feedforward_layernorm, self.pre_feedforward_layernorm_2 = norm(), norm()
        self.post_feedforward_layernorm_1, self.post_feedforward_layernorm_2 = eased(), eased()
        self.post_feedforward_layernorm = eased()
        self.encoder_scalar = nn.Parameter(torch.ones(1))
        self.decoder_scalar = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, canvas: Tensor, tables: tuple[Tensor, Tensor], hidden: Tensor) -> Tensor:
        x = x + self.post_attention_layernorm(self.self_attn(self.input_layernorm(x), tables, hidden))
        dense = self.post_feedforward_layernorm_1(self.mlp(self.pre_feedforward_layernorm(x)))
        sparse = self.experts(self.pre_feedforward_layernorm_2(x), self.router(x))
        x = x + self.post_feedforward_layernorm(dense + self.post_feedforward_layernorm_2(sparse))
        return x * torch.where(canvas, self.decoder_scalar, self.encoder_scalar)


class SelfConditioning(GatedMLP):
    """What the step before believed, added to a canvas's embeddings, which are then normalised."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape.hidden_size, shape.intermediate_size)
        self.pre_norm = Norm(shape.hidden_size, shape.rms_norm_eps)
        self.post_norm = EasedNorm(shape.hidden_size, shape.rms_norm_eps, weighted=False)

    def condition(self, embedded: Tensor, believed: Tensor) -> Tensor:
        out: Tensor = self.post_norm(embedded + self(self.pre_norm(believed)))
        return out


class GemmaNetwork(nn.Module):
    """The whole network."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        last = shape.num_hidden_layers - 1
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.self_conditioning = SelfConditioning(shape)
        self.layers = nn.ModuleList(Layer(shape, full=index == last) for index in range(shape.num_hidden_layers))
        self.norm = Norm(shape.hidden_size, shape.rms_norm_eps)
        self._ropes = [
            Rope(shape.rope_theta, shape.head_dim, 1.0),
            Rope(shape.rope_theta, shape.global_head_dim, shape.global_rope_share),
        ]
        self._scale = math.sqrt(shape.hidden_size)

    def forward(
        self, ids: Tensor, positions: Tensor, encoded: int, visible: Tensor, believed: Tensor | None = None
    ) -> Tensor:
        """Hidden states after the final norm.

        Args:
            ids, positions: [batch, rows].
            encoded: how many of the rows are the encoder's; canvases follow.
            visible: [batch, rows, rows] bool, who sees whom; every row sees at least itself.
            believed: [batch, rows - encoded, vocab] logits of the step before, already tempered; None = the first step.
        Returns:
            [batch, rows, hidden].
        """
        embedded = self.embed_tokens(ids) * self._scale
        final, canvas = embedded[:, :encoded], embedded[:, encoded:]
        if believed is None:
            soft = torch.zeros_like(canvas)
        else:
            shares = believed.softmax(-1, dtype=torch.float32)
            soft = shares.to(canvas.dtype) @ self.embed_tokens.weight * self._scale
        x = torch.cat((final, self.self_conditioning.condition(canvas, soft)), dim=1)
        flag = (torch.arange(ids.shape[1]) >= encoded)[:, None]
        hidden = torch.zeros(visible.shape, dtype=x.dtype).masked_fill_(~visible, -torch.inf)[:, None]
        tables = [rope.tables(positions) for rope in self._ropes]
        for layer in self.layers:
            x = layer(x, flag, tables[layer is self.layers[-1]], hidden)
        out: Tensor = self.norm(x)
        return out

    @property
    def stack(self) -> list[Layer]:
        """The layers."""
        return [layer for layer in self.layers if isinstance(layer, Layer)]

    def ease(self, share: float) -> None:
        """How much of what is new counts, from 0 to 1."""
        for module in self.modules():
            if isinstance(module, EasedNorm | GatedMLP | Experts):
                module.share = share

    def logits(self, states: Tensor) -> Tensor:
        """[..., hidden] -> [..., vocab] float32, softly capped."""
        cap = self.shape.final_logit_softcapping
        scores = functional.linear(states, self.embed_tokens.weight).float()
        return cap * torch.tanh(scores / cap)

    def imbalance(self) -> Tensor:
        """Mean over layers of how uneven the latest forward's choice of experts was; 1 = even."""
        return torch.stack([layer.router.imbalance for layer in self.stack]).mean()
