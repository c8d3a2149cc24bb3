"""What a pre-norm decoder looks like, as numbers; importing this imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import attrs

from diffulex_core.errors import ConfigError
from diffulex_core.layers.moe.spec import MoESpec


def _indices(layers: Iterable[int]) -> frozenset[int]:
    return frozenset(layers)


def _even_split(spec: DecoderSpec) -> int:
    return spec.hidden_size // max(spec.num_heads, 1)


@attrs.frozen(kw_only=True)
class DecoderSpec:
    """Shape and options of a generic decoder.

    Attributes:
        vocab_size: rows of the embedding and of the head (may exceed the number of real tokens).
        hidden_size: width of the residual stream.
        num_layers: number of blocks.
        num_heads: query heads.
        num_kv_heads: key/value heads; divides `num_heads`.
        ffn_size: width of the gated MLP.
        rope_theta: base of the rotary frequencies.
        head_dim: width of a head; `hidden_size / num_heads` unless given.
        rope_fraction: leading share of a head that is rotated.
        norm: kind of normalisation.
        norm_eps: added to the mean square.
        activation: gate of the MLP.
        qk_norm: normalise queries and keys for each head before rotating them.
        qkv_bias, out_bias, mlp_bias, head_bias: which linear layers add a bias.
        tie_embeddings: the head reads the embedding matrix.
        moe: the mixture of experts that stands in for the gated MLP of some layers; None = every layer is dense.
        sparse_layers: indices of these layers.
    Raises:
        ConfigError: listing every number that makes no decoder.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    ffn_size: int
    rope_theta: float
    head_dim: int = attrs.field(default=attrs.Factory(_even_split, takes_self=True))
    rope_fraction: float = 1.0
    norm: Literal["rms"] = "rms"
    norm_eps: float = 1e-5
    activation: Literal["silu"] = "silu"
    qk_norm: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    tie_embeddings: bool = False
    moe: MoESpec | None = None
    sparse_layers: frozenset[int] = attrs.field(default=frozenset(), converter=_indices)

    def __attrs_post_init__(self) -> None:
        problems = self._problems()
        if problems:
            raise ConfigError(problems)

    @property
    def rotary_dim(self) -> int:
        """Numbers of a head that are rotated."""
        return int(self.head_dim * self.rope_fraction)

    def _problems(self) -> list[str]:
        sizes = ("vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "ffn_size", "head_dim")
        values = attrs.asdict(self, recurse=False)
        problems = [f"{name} is {values[name]!r}; it must be at least 1." for name in sizes if values[name] < 1]
        if problems:
            return problems
        if self.num_heads % self.num_kv_heads:
            problems.append(f"{self.num_heads} query heads cannot share {self.num_kv_heads} key/value heads evenly.")
        if self.rotary_dim % 2 or not 0 < self.rope_fraction <= 1:
            problems.append(
                f"RoPE needs an even number of rotated dimensions, but head_dim {self.head_dim} with"
                f" rope_fraction {self.rope_fraction} gives {self.rotary_dim}."
            )
        if (self.norm, self.activation) != ("rms", "silu"):
            problems.append(f"norm={self.norm!r} with activation={self.activation!r}: only 'rms' with 'silu' exists.")
        if self.rope_theta <= 0 or self.norm_eps <= 0:
            problems.append(f"rope_theta ({self.rope_theta!r}) and norm_eps ({self.norm_eps!r}) must be positive.")
        if bool(self.sparse_layers) != (self.moe is not None):
            problems.append("Layers with experts need a description of the experts (moe), and the other way round.")
        strays = sorted(layer for layer in self.sparse_layers if not 0 <= layer < self.num_layers)
        if strays:
            problems.append(f"There are {self.num_layers} layers; sparse_layers names {strays}.")
        return problems
