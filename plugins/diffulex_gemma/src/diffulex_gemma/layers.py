"""The parts of DiffusionGemma's layers, over flat, ragged rows."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional

from diffulex_core.context import BuildContext, ForwardContext
from diffulex_core.distributed.ranges import even_range, kv_head_range
from diffulex_core.kernels.layers import HeadNorms, LayerKernels
from diffulex_core.layers.linear import PackedLinear, RowLinear, empty_parameter
from diffulex_core.layers.mlp import GatedMLP
from diffulex_core.layers.moe.dispatch import Dispatcher, LocalDispatcher
from diffulex_core.layers.moe.experts import Experts
from diffulex_core.layers.moe.routing import choose
from diffulex_core.layers.moe.spec import MoESpec
from diffulex_core.layers.norm import RMSNorm, normed
from diffulex_core.layers.rope import Rotation
from diffulex_gemma.spec import GemmaSpec


def plain_norm(x: Tensor, eps: float, kernels: LayerKernels | None) -> Tensor:
    """[rows, width] of root mean square 1."""
    return normed(x, None, eps) if kernels is None else kernels.normed(x, None, eps)


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
        self.q_norm = RMSNorm(ctx, kind.head_dim, spec.norm_eps, wide=True)
        self.k_norm = RMSNorm(ctx, kind.head_dim, spec.norm_eps, wide=True)
        self.head_dim, self.eps = kind.head_dim, spec.norm_eps
        self.kernels = ctx.kernels

    def forward(self, x: Tensor, rotation: Rotation, ctx: ForwardContext) -> Tensor:
        """[rows, hidden] -> [rows, hidden]; stores the rows' K/V."""
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)) for part in self._project(x))
        if self.kernels is not None:
            norms = HeadNorms(query=self.q_norm.weight, key=self.k_norm.weight, eps=self.eps, wide=True, values=True)
            seen = ctx.turn_and_attend(
                self.kernels, self.layer, self.kind, q, k, v, norms=norms, rotation=rotation, scale=1.0
            )
        else:
            v = normed(v, None, self.eps)
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
        self.eps, self.factor = spec.norm_eps, spec.hidden_size**-0.5
        self.mixture = MoESpec(
            num_experts=spec.num_experts,
            experts_per_token=spec.experts_per_token,
            expert_size=spec.expert_size,
            router="softmax",
            renormalize=True,
        )
        self.choose = choose if ctx.kernels is None else ctx.kernels.route
        self.kernels = ctx.kernels

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[rows, hidden] -> ids [rows, k] int32, best first, and weights [rows, k] float32."""
        scores = functional.linear(
            plain_norm(x.float(), self.eps, self.kernels) * self.scale * self.factor, self.weight
        )
        ids, weights = self.choose(scores, None, self.mixture)
        return ids, weights * self.per_expert_scale[ids]


class Layer(nn.Module):
    """Attention, then a dense MLP and a mixture of experts side by side; every branch is normalised before and after.

    Encoder and decoder share all weights, but each scales the layer's output by a number of its own.
    """

    encoder_scalar: Tensor
    decoder_scalar: Tensor

    def __init__(self, ctx: BuildContext, spec: GemmaSpec, layer: int) -> None:
        super().__init__()

        def norm() -> RMSNorm:
            return RMSNorm(ctx, spec.hidden_size, spec.norm_eps, wide=True)

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
        x = self.post_attention_layernorm.onto(x, self.attn(self.input_layernorm(x), rotation, ctx))
        dense = self.post_feedforward_layernorm_1(self.mlp(self.pre_feedforward_layernorm(x)))
        sparse = self._mixture(self.pre_feedforward_layernorm_2(x), *self.router(x))
        x = self.post_feedforward_layernorm.onto(x, self.post_feedforward_layernorm_2.onto(dense, sparse))
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
        self.pre_norm = RMSNorm(ctx, spec.hidden_size, spec.norm_eps, wide=True)
        self.mlp = GatedMLP(ctx, spec.hidden_size, spec.ffn_size, activation="gelu_tanh")
        self.eps, self.kernels = spec.norm_eps, ctx.kernels

    def forward(self, embedded: Tensor, believed: Tensor | None) -> Tensor:
        """[rows, hidden] both -> [rows, hidden]; None stands for zeros."""
        signal = embedded if believed is None else embedded + self.mlp(self.pre_norm(believed))
        return plain_norm(signal, self.eps, self.kernels)
