"""Self-attention of the generic decoder: projections, rotation, and a call into the forward context."""

from __future__ import annotations

from torch import Tensor, nn

from diffulex_core.context import BuildContext, ForwardContext
from diffulex_core.distributed.ranges import even_range, kv_head_range
from diffulex_core.kernels.layers import HeadNorms
from diffulex_core.layers.linear import PackedLinear, RowLinear
from diffulex_core.layers.norm import RMSNorm
from diffulex_core.layers.rope import Rotation
from diffulex_core.layers.spec import DecoderSpec


class SelfAttention(nn.Module):
    """Grouped-query attention over the pages of the forward context."""

    def __init__(self, ctx: BuildContext, spec: DecoderSpec, layer: int, kind: int = 0) -> None:
        """Attention of one layer.

        Args:
            layer: index among the layers that store K/V.
            kind: index of the model's layer kind (which visibility the layer uses).
        """
        super().__init__()
        width = spec.num_heads * spec.head_dim
        query = even_range(spec.num_heads, ctx.tp, "the number of query heads").scaled(spec.head_dim)
        key = kv_head_range(spec.num_heads, spec.num_kv_heads, ctx.tp).scaled(spec.head_dim)
        self.qkv = PackedLinear(ctx, spec.hidden_size, {"q": query, "k": key, "v": key}, bias=spec.qkv_bias)
        self.out = RowLinear(ctx, width, spec.hidden_size, bias=spec.out_bias)
        self.q_norm = RMSNorm(ctx, spec.head_dim, spec.norm_eps) if spec.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(ctx, spec.head_dim, spec.norm_eps) if spec.qk_norm else nn.Identity()
        self.normed = spec.qk_norm
        self.bounds = (query.length // spec.head_dim, (query.length + key.length) // spec.head_dim)
        """Heads that are queries, and those that are queries or keys."""
        self.layer, self.kind, self.head_dim = layer, kind, spec.head_dim
        self.kernels = ctx.kernels

    def forward(self, x: Tensor, rotation: Rotation, ctx: ForwardContext) -> Tensor:
        """[rows, hidden] -> [rows, hidden]; stores the rows' K/V."""
        heads = self.qkv(x).unflatten(-1, (-1, self.head_dim))
        q, k, v = heads.tensor_split(self.bounds, dim=1)
        if self.kernels is not None:
            seen = ctx.turn_and_attend(
                self.kernels,
                self.layer,
                self.kind,
                q,
                k,
                v,
                norms=self._norms(),
                rotation=rotation,
                scale=self.head_dim**-0.5,
            )
            turned: Tensor = self.out(seen.flatten(1))
            return turned
        if self.normed:
            q, k = rotation(self.q_norm(q)), rotation(self.k_norm(k))
        else:
            q, k = rotation(heads[:, : self.bounds[1]]).tensor_split(self.bounds[:1], dim=1)
        seen = ctx.attend(self.layer, self.kind, q, k, v, self.head_dim**-0.5)
        out: Tensor = self.out(seen.flatten(1))
        return out

    def _norms(self) -> HeadNorms | None:
        query, key = self.q_norm, self.k_norm
        if isinstance(query, RMSNorm) and isinstance(key, RMSNorm):
            return HeadNorms(query=query.weight, key=key.weight, eps=query.eps)
        return None
