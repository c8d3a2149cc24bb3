"""Strict reading of Fast-dLLM v2's config.json; importing this imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from diffulex_core.config_json import ConfigReader, StandardTraits, standard_decoder
from diffulex_core.layers import DecoderSpec
from diffulex_core.plugin import ConfigError

TRAITS = StandardTraits(
    qkv_bias=True,
    head_dim="derived",
    # The 1.5B model ties the head and the 7B model does not: only the key says so.
    tie_embeddings=None,
    only={"attention_bias": True, "use_sliding_window": False},
)
"""A Qwen2 decoder."""

TINY: Mapping[str, object] = MappingProxyType({
    "architectures": ["Fast_dLLM_QwenForCausalLM"], "model_type": "Fast_dLLM_Qwen", "vocab_size": 101,
    "hidden_size": 56, "num_hidden_layers": 2, "num_attention_heads": 14, "num_key_value_heads": 2,
    "intermediate_size": 44, "hidden_act": "silu", "rope_theta": 1000000.0, "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True, "max_position_embeddings": 256, "bd_size": 4,
    "layer_types": ["full_attention", "full_attention"], "mask_token_id": 99, "eos_token_id": 98, "pad_token_id": 97,
})  # fmt: skip
"""A small configuration for tests: seven query heads for each key/value head, as in the 7B model."""


def check_config(config: Mapping[str, object]) -> list[str]:
    """Everything in a config.json that this family cannot run, one sentence each."""
    return _read(config)[1]


def decoder_spec(config: Mapping[str, object]) -> DecoderSpec:
    """The decoder that a config.json describes. Raises ConfigError with all problems."""
    spec, problems = _read(config)
    if spec is None:
        raise ConfigError(problems)
    return spec


def _read(config: Mapping[str, object]) -> tuple[DecoderSpec | None, list[str]]:
    reader = ConfigReader(config)
    reader.size("bd_size", default=32)
    spec = standard_decoder(reader, TRAITS)
    return (None, reader.problems) if reader.problems else (spec, [])
