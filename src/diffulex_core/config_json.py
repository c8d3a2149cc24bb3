"""Strict reading of a checkpoint's config.json: typed values, all problems collected. Imports no torch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal, TypeGuard

import attrs

from diffulex_core.errors import ConfigError
from diffulex_core.layers.moe import MoESpec
from diffulex_core.layers.spec import DecoderSpec

LARGEST = 2**31 - 1
"""No size of a network is larger."""
MOST_LAYERS = 10_000


@attrs.define
class ConfigReader:
    """Reads typed values; a missing or wrong one is noted and stands in as 1 (or False), so that reading goes on.

    Attributes:
        config: the parsed config.json, or a section of it.
        problems: one sentence for each value that cannot be used.
        wrong: keys that are named there.
    """

    config: Mapping[str, object]
    problems: list[str] = attrs.field(factory=list, init=False)
    wrong: set[str] = attrs.field(factory=set, init=False)

    def size(self, key: str, *, default: int | None = None, minimum: int = 1, maximum: int = LARGEST) -> int:
        """A whole number; a missing or null one is `default`, without a default it is a problem."""
        value = self.config.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            most = f" and at most {maximum}" if isinstance(value, int) and value > maximum else ""
            self.reject(key, f"a whole number of at least {minimum}{most}")
            return minimum
        return value

    def number(self, key: str, *, default: float | None = None) -> float:
        """A positive number; a missing or null one is `default`, without a default it is a problem."""
        value = self.config.get(key)
        if value is None and default is not None:
            return default
        if not _is_positive(value):
            self.reject(key, "a positive number")
            return 1.0
        return float(value)

    def flag(self, key: str, *, default: bool = False, required: bool = False) -> bool:
        """True or false; a missing or null one is `default` unless it is required."""
        value = self.config.get(key)
        if value is None and not required:
            return default
        if not isinstance(value, bool):
            self.reject(key, "true or false")
            return default
        return value

    def only(self, key: str, value: object, *, required: bool = False) -> None:
        """Note a problem unless the key has this one supported value; unless required, it may be missing or null."""
        found = self.config.get(key)
        if found is None and not required:
            return
        if key not in self.config:
            self.wrong.add(key)
            self.problems.append(f"{key} is missing; the one supported value is {value!r}.")
        elif found != value or isinstance(found, bool) != isinstance(value, bool):
            self.wrong.add(key)
            self.problems.append(f"{key} is {found!r}; the one supported value is {value!r}.")

    def unscaled_rope(self) -> None:
        """Note a problem if positions are scaled or stretched in any way."""
        for key in ("rope_scaling", "rope_parameters"):
            scaling = self.config.get(key)
            kind = scaling.get("rope_type", scaling.get("type", "default")) if isinstance(scaling, Mapping) else scaling
            if kind not in (None, "default"):
                self.wrong.add(key)
                self.problems.append(f"{key} asks for {kind!r}; RoPE scaling is not supported for this family.")

    def rope_number(self, key: str, *, default: float | None = None) -> float:
        """A number of the rotary embedding, stated at the top (older files) or within `rope_parameters` (newer ones).

        Both may be there; then they must agree.
        """
        nested = self.config.get("rope_parameters")
        inner = nested.get(key) if isinstance(nested, Mapping) else None
        if inner is None:
            return self.number(key, default=default)
        if not _is_positive(inner):
            self.wrong.add(key)
            self.problems.append(f"{key} is {inner!r} in rope_parameters; config.json must give a positive number.")
            return 1.0
        if self.config.get(key) not in (None, inner):
            self.wrong.add(key)
            self.problems.append(f"{key} is {self.config[key]!r}, but {inner!r} in rope_parameters: remove one.")
        return float(inner)

    def full_attention(self) -> None:
        """Note a problem unless all layers see everything, as far as `layer_types` says."""
        kinds = self.config.get("layer_types")
        if kinds is not None and (not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds)):
            self.reject("layer_types", "a list of 'full_attention' only")

    def reject(self, key: str, wanted: str) -> None:
        """Note that a key is missing or has a value of the wrong kind."""
        state = f"is {self.config[key]!r}" if key in self.config else "is missing"
        self.wrong.add(key)
        self.problems.append(f"{key} {state}; config.json must give {wanted}.")


def _is_positive(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= sys.float_info.max


@attrs.frozen(kw_only=True)
class StandardTraits:
    """What a family with standard key names fixes whatever its config.json says.

    Attributes:
        qkv_bias: the query, key and value projections add a bias.
        out_bias: the attention's output projection adds a bias.
        qk_norm: queries and keys are normalised for each head.
        head_dim: "stated" when config.json must give it, "derived" when hidden_size / num_attention_heads stands in.
        rope_fraction: share of a head that is rotated where config.json does not say.
        tie_embeddings: what a missing tie_word_embeddings means; None = the key is required.
        only: keys that must have one value where they are given.
        experts: "softmax" when the keys of Qwen3-MoE describe the experts of some layers; None = all layers are dense.
    """

    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False
    head_dim: Literal["stated", "derived"] = "stated"
    rope_fraction: float = 1.0
    tie_embeddings: bool | None = False
    only: Mapping[str, object] = attrs.field(factory=dict)
    experts: Literal["softmax"] | None = None


def read_standard_decoder(
    config: Mapping[str, object], traits: StandardTraits
) -> tuple[DecoderSpec | None, Sequence[str]]:
    """The decoder of a config.json with the key names that transformers uses, or what is wrong with it.

    Read are hidden_size, num_hidden_layers, num_attention_heads, num_key_value_heads, head_dim, intermediate_size,
    vocab_size, rms_norm_eps, rope_theta, partial_rotary_factor, tie_word_embeddings and hidden_act; with experts also
    num_experts, num_experts_per_tok, moe_intermediate_size, norm_topk_prob, mlp_only_layers and decoder_sparse_step.
    """
    reader = ConfigReader(config)
    spec = standard_decoder(reader, traits)
    return (None, reader.problems) if reader.problems else (spec, ())


def standard_decoder(reader: ConfigReader, traits: StandardTraits) -> DecoderSpec | None:
    """As `read_standard_decoder`, for a reader with which the family goes on reading; None when it has problems."""
    reader.unscaled_rope()
    reader.full_attention()
    for key, value in {"hidden_act": "silu", **traits.only}.items():
        reader.only(key, value)
    hidden, heads = reader.size("hidden_size"), reader.size("num_attention_heads")
    derived = hidden // heads if traits.head_dim == "derived" else None
    head_dim = reader.size("head_dim", default=derived)
    if derived == head_dim and not reader.wrong and hidden % heads:
        reader.problems.append(f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}.")
    vocab_size, layers = reader.size("vocab_size"), reader.size("num_hidden_layers", maximum=MOST_LAYERS)
    kv_heads, ffn = reader.size("num_key_value_heads"), reader.size("intermediate_size")
    rope_theta, norm_eps = reader.rope_number("rope_theta"), reader.number("rms_norm_eps")
    rope_fraction = reader.rope_number("partial_rotary_factor", default=traits.rope_fraction)
    if rope_fraction > 1:
        reader.problems.append(
            f"partial_rotary_factor is {rope_fraction}; config.json must give a number of at most 1."
        )
    tied = reader.flag(
        "tie_word_embeddings", default=bool(traits.tie_embeddings), required=traits.tie_embeddings is None
    )
    read_experts = _softmax_experts(reader) if traits.experts is not None else None
    sparse = _sparse_layers(reader, layers) if traits.experts is not None else frozenset[int]()
    if reader.problems:
        return None
    try:
        return DecoderSpec(
            vocab_size=vocab_size,
            hidden_size=hidden,
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            ffn_size=ffn,
            rope_theta=rope_theta,
            rope_fraction=rope_fraction,
            norm_eps=norm_eps,
            qk_norm=traits.qk_norm,
            qkv_bias=traits.qkv_bias,
            out_bias=traits.out_bias,
            tie_embeddings=tied,
            moe=read_experts() if read_experts is not None and sparse else None,
            sparse_layers=sparse,
        )
    except ConfigError as error:
        reader.problems += error.problems
        return None


def _softmax_experts(reader: ConfigReader) -> Callable[[], MoESpec]:
    """Reads the experts' numbers now; what it returns builds the spec, or raises ConfigError."""
    return partial(
        MoESpec,
        num_experts=reader.size("num_experts"),
        experts_per_token=reader.size("num_experts_per_tok"),
        expert_size=reader.size("moe_intermediate_size"),
        router="softmax",
        renormalize=reader.flag("norm_topk_prob", required=True),
    )


def _sparse_layers(reader: ConfigReader, num_layers: int) -> frozenset[int]:
    """Every `decoder_sparse_step`-th layer has experts, except those that `mlp_only_layers` lists."""
    step = reader.size("decoder_sparse_step", default=1)
    dense = reader.config.get("mlp_only_layers")
    if dense is None:
        dense = []
    if not isinstance(dense, list) or not all(type(layer) is int and 0 <= layer < num_layers for layer in dense):
        reader.reject("mlp_only_layers", "a list of layers")
        return frozenset()
    return frozenset(range(step - 1, num_layers, step)).difference(dense)
