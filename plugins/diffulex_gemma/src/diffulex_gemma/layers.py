"""The parts of DiffusionGemma's layers, over flat, ragged rows."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional

from diffulex_core.context import BuildContext, ForwardContext
from diffulex_core.distributed.ranges import even_range, kv_head_range
from diffulex_core.layers.linear import PackedLinear, RowLinear, empty_parameter
from diffulex_core.layers.mlp import GatedMLP
from diffulex_core.layers.moe.dispatch import Dispatcher, LocalDispatcher
from diffulex_core.layers.moe.experts import Experts
from diffulex_core.layers.moe.routing import best, total
from diffulex_core.layers.rope import Rotation
from diffulex_gemma.spec import GemmaSpec


def normed(x: Tensor, eps: float, weight: Tensor | None = None) -> Tensor:
    """[..., width] of root mean square 1, then times `weight`; all in fp32 and cast back once."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide if weight is None else wide * weight.float()).to(x.dtype)


class Norm(nn.Module):
    """`normed` with a weight [width]."""

    def __init__(self, ctx: BuildContext, width: int, eps: float) -> None:
        super().__init__()
        self.weight = empty_parameter(ctx, width)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        return normed(x, self.eps, self.weight)


class Attention(nn.Module):
    """Grouped-query attention with unscaled scores over normalised heads.

    Values are normalised too, without a weight. In full layers they are the projected keys, before norm and rotation.
    """

    def __init__(self, ctx: BuildContext, spec: GemmaSpec, layer: int) -> None:
        super().__init__()
        self.layer, self.kind = layer, int(spec.full_layers[layer])
        kind = spec.kinds[self.kind]
        query = even_range(spec.num_heads, ctx.tp, "the number of query heads").scaled(kind.head_dim)
        key = kv_head_range(spec.num_heads, kind.num_kv_heads, ctx.tp).scaled(kind.head_dim)
        own = kind.own_values
        self.qkv = PackedLinear(ctx, spec.hidden_size, {"q": query, "k": key, "v": key}) if own else None
        self.qk = None if own else PackedLinear(ctx, spec.hidden_size, {"q": query, "k": key})
        self.out = RowLinear(ctx, spec.num_heads * kind.head_dim, spec.hidden_size)
        self.q_norm = Norm(ctx, kind.head_dim, spec.norm_eps)
        self.k_norm = Norm(ctx, kind.head_dim, spec.norm_eps)
        self.head_dim, self.eps = kind.head_dim, spec.norm_eps

    def forward(self, x: Tensor, rotation: Rotation, ctx: ForwardContext) -> Tensor:
        """[rows, hidden] -> [rows, hidden]; stores the rows' K/V."""
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)) for part in self._project(x))
        v = normed(v, self.eps)
        seen = ctx.attend(self.layer, self.kind, rotation(self.q_norm(q)), rotation(self.k_norm(k)), v, 1.0)
        out: Tensor = self.out(seen.flatten(1))
        return out

    def _project(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.qkv is not None:
            return self.qkv.split(self.qkv(x))
        assert self.qk is not None
        q, k = self.qk.split(self.qk(x))
        return q, k, k


class Router(nn.Module):
    """Scores all experts from the residual stream, normalised without weight and scaled; in fp32 whatever the dtype.

    `weight` [experts, hidden], `scale` [hidden], `per_expert_scale` [experts]; all processes hold all of them.
    """

    def __init__(self, ctx: BuildContext, spec: GemmaSpec) -> None:
        super().__init__()
        wide = attrs.evolve(ctx, dtype=torch.float32)
        self.weight = empty_parameter(wide, spec.num_experts, spec.hidden_size)
        self.scale = empty_parameter(wide, spec.hidden_size)
        self.per_expert_scale = empty_parameter(wide, spec.num_experts)
        self.chosen, self.eps, self.factor = spec.experts_per_token, spec.norm_eps, spec.hidden_size**-0.5

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[rows, hidden] -> ids [rows, k] int32, best first, and weights [rows, k] float32."""
        scores = functional.linear(normed(x.float(), self.eps) * self.scale * self.factor, self.weight).softmax(-1)
        ids = best(scores, self.chosen)
        weights = scores.gather(-1, ids)
        return ids.int(), weights / total(weights) * self.per_expert_scale[ids]


class Layer(nn.Module):
    """Attention, then a dense MLP and a mixture of experts side by side; every branch is normalised before and after.

    Encoder and decoder share all weights, but each scales the layer's output by a number of its own.
    """

    encoder_scalar: Tensor
    decoder_scalar: Tensor

    def __init__(self, ctx: BuildContext, spec: GemmaSpec, layer: int) -> None:
        super().__init__()

        def norm() -> Norm:
            return Norm(ctx, spec.hidden_size, spec.norm_eps)

        self.input_layernorm, self.post_attention_layernorm = norm(), norm()
        self.pre_feedforward_layernorm, self.post_feedforward_layernorm = norm(), norm()
        self.pre_feedforward_layernorm_2 = norm()
        self.post_feedforward_layernorm_1, self.post_feedforward_layernorm_2 = norm(), norm()
        self.attn = Attention(ctx, spec, layer)
        self.mlp = GatedMLP(ctx, spec.hidden_size, spec.ffn_size, activation="gelu_tanh")
        self.router = Router(ctx, spec)
        self.experts = Experts(
            ctx,
            num_experts=spec.num_experts,
            hidden_size=spec.hidden_size,
            expert_size=spec.expert_size,
            activation="gelu_tanh",
        )
        self.dispatcher: Dispatcher = LocalDispatcher(self.experts.held)
        self.tp = ctx.tp
        for name in ("encoder_scalar", "decoder_scalar"):
            self.register_buffer(name, torch.empty(1, dtype=ctx.dtype, device=ctx.device))

    def forward(self, x: Tensor, final: Tensor, rotation: Rotation, ctx: ForwardContext) -> Tensor:
        """[rows, hidden] -> [rows, hidden]; `final` [rows, 1] tells encoder rows from decoder rows."""
        x = x + self.post_attention_layernorm(self.attn(self.input_layernorm(x), rotation, ctx))
        dense = self.post_feedforward_layernorm_1(self.mlp(self.pre_feedforward_layernorm(x)))
        sparse = self.post_feedforward_layernorm_2(self._mixture(self.pre_feedforward_layernorm_2(x), *self.router(x)))
        x = x + self.post_feedforward_layernorm(dense + sparse)
        return x * torch.where(final, self.encoder_scalar, self.decoder_scalar)

    def _mixture(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        sent = self.dispatcher.dispatch(x, ids, weights)
        return self.tp.sum(self.dispatcher.combine(self.experts(sent.x, sent.ids, sent.weights), sent))


class SelfConditioning(nn.Module):
    """What the step before believed, added to a canvas's embeddings: `normed(e + mlp(norm(u)))`.

    The outer norm has no weight and applies in the first step too, where `u` is zero: rows enter the layers with root
    mean square 1.
    """

    def __init__(self, ctx: BuildContext, spec: GemmaSpec) -> None:
        super().__init__()
        self.pre_norm = Norm(ctx, spec.hidden_size, spec.norm_eps)
        self.mlp = GatedMLP(ctx, spec.hidden_size, spec.ffn_size, activation="gelu_tanh")
        self.eps = spec.norm_eps

    def forward(self, embedded: Tensor, believed: Tensor | None) -> Tensor:
        """[rows, hidden] both -> [rows, hidden]; None stands for zeros."""
        signal = embedded if believed is None else embedded + self.mlp(self.pre_norm(believed))
        return normed(signal, self.eps)
