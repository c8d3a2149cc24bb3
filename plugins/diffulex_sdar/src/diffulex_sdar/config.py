"""Strict reading of the config.json of SDAR and Stable-DiffCoder; importing this imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import attrs

from diffulex_core.config_json import StandardTraits, read_standard_decoder
from diffulex_core.layers import DecoderSpec
from diffulex_core.plugin import ConfigError

SDAR = StandardTraits(
    qk_norm=True,
    # The 4B model's heads are wider than hidden_size / num_attention_heads: a missing head_dim cannot be derived.
    head_dim="stated",
    tie_embeddings=False,
    only={"attention_bias": False, "use_sliding_window": False},
)
"""A Qwen3 decoder. Its smaller parents tie the head, it does not: only the key says so."""

SDAR_MOE = attrs.evolve(SDAR, experts="softmax")
"""A Qwen3-MoE decoder."""

STABLE_DIFFCODER = StandardTraits(
    head_dim="derived", tie_embeddings=False, only={"attention_bias": False, "mlp_bias": False}
)
"""A Llama decoder."""

TINY_SDAR: Mapping[str, object] = MappingProxyType({
    "architectures": ["SDARForCausalLM"], "model_type": "sdar", "vocab_size": 101, "hidden_size": 32,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12,
    "intermediate_size": 44, "hidden_act": "silu", "rope_theta": 1000000.0, "rms_norm_eps": 1e-6,
    "attention_bias": False, "tie_word_embeddings": False, "max_position_embeddings": 256, "block_size": 4,
    "mask_token_id": 99, "eos_token_id": 98, "pad_token_id": 98,
})  # fmt: skip
"""A small SDAR for tests."""

TINY_SDAR_MOE: Mapping[str, object] = MappingProxyType({
    **TINY_SDAR, "architectures": ["SDARMoeForCausalLM"], "model_type": "sdar_moe", "num_hidden_layers": 3,
    "moe_intermediate_size": 20, "num_experts": 8, "num_experts_per_tok": 3, "norm_topk_prob": True,
    "decoder_sparse_step": 1, "mlp_only_layers": [1],
})  # fmt: skip
"""A small SDAR-MoE for tests; its second layer is dense."""

TINY_STABLE_DIFFCODER: Mapping[str, object] = MappingProxyType({
    "architectures": ["StableDiffcoderForCausalLM"], "model_type": "llama", "vocab_size": 103, "hidden_size": 32,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 44,
    "hidden_act": "silu", "rope_theta": 500000.0, "rms_norm_eps": 1e-6, "attention_bias": False, "mlp_bias": False,
    "tie_word_embeddings": False, "max_position_embeddings": 256, "bos_token_id": 0, "pad_token_id": 1,
    "eos_token_id": 2,
})  # fmt: skip
"""A small Stable-DiffCoder for tests."""


def check_sdar(config: Mapping[str, object]) -> list[str]:
    """Everything in a config.json that SDAR cannot run, one sentence each."""
    return [*read_standard_decoder(config, SDAR)[1]]


def check_sdar_moe(config: Mapping[str, object]) -> list[str]:
    """Everything in a config.json that SDAR-MoE cannot run, one sentence each."""
    return [*read_standard_decoder(config, SDAR_MOE)[1]]


def check_stable_diffcoder(config: Mapping[str, object]) -> list[str]:
    """Everything in a config.json that Stable-DiffCoder cannot run, one sentence each."""
    return [*read_standard_decoder(config, STABLE_DIFFCODER)[1]]


def sdar_spec(config: Mapping[str, object]) -> DecoderSpec:
    """The decoder that SDAR's config.json describes. Raises ConfigError with all problems."""
    return _spec(*read_standard_decoder(config, SDAR))


def sdar_moe_spec(config: Mapping[str, object]) -> DecoderSpec:
    """The decoder that SDAR-MoE's config.json describes. Raises ConfigError with all problems."""
    return _spec(*read_standard_decoder(config, SDAR_MOE))


def stable_diffcoder_spec(config: Mapping[str, object]) -> DecoderSpec:
    """The decoder that Stable-DiffCoder's config.json describes. Raises ConfigError with all problems."""
    return _spec(*read_standard_decoder(config, STABLE_DIFFCODER))


def _spec(spec: DecoderSpec | None, problems: Sequence[str]) -> DecoderSpec:
    if spec is None:
        raise ConfigError(problems)
    return spec
