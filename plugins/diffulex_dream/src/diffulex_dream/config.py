"""Strict reading of the config.json of Dream and DreamReasoner; importing this imports no torch.

Both say `"model_type": "Dream"`. Dream is a Qwen2 (biases), DreamReasoner a Qwen3 (query and key norms, a block size):
taken for the other, either would load into a network that was never trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import attrs

from diffulex_core.config_json import StandardTraits, read_standard_decoder
from diffulex_core.layers import DecoderSpec
from diffulex_core.plugin import ConfigError


@attrs.frozen(kw_only=True)
class Kind:
    """One of the two networks and how its config.json tells it from the other.

    Attributes:
        name: how messages call it.
        architecture: its entry of `architectures`.
        attention_bias: whether query, key and value projections have biases.
        block_size: whether config.json states one.
        traits: what its config.json need not say.
    """

    name: str
    architecture: str
    attention_bias: bool
    block_size: bool
    traits: StandardTraits


DREAM = Kind(
    name="Dream",
    architecture="DreamModel",
    attention_bias=True,
    block_size=False,
    traits=StandardTraits(qkv_bias=True, head_dim="derived", only={"use_sliding_window": False, "use_mrope": False}),
)
REASONER = Kind(
    name="DreamReasoner",
    architecture="DreamForCausalLM",
    attention_bias=False,
    block_size=True,
    traits=StandardTraits(qk_norm=True, head_dim="derived", only={"use_sliding_window": False, "use_mrope": False}),
)

TINY_DREAM: Mapping[str, object] = MappingProxyType({
    "architectures": ["DreamModel"], "model_type": "Dream", "vocab_size": 101, "hidden_size": 32,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 44,
    "hidden_act": "silu", "rope_theta": 1000000.0, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
    "max_position_embeddings": 256, "mask_token_id": 99, "eos_token_id": 98, "pad_token_id": 98,
})  # fmt: skip
"""A small Dream for tests."""

TINY_REASONER: Mapping[str, object] = MappingProxyType({
    "architectures": ["DreamForCausalLM"], "model_type": "Dream", "vocab_size": 103, "hidden_size": 32,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12,
    "intermediate_size": 44, "hidden_act": "silu", "rope_theta": 1000000.0, "rms_norm_eps": 1e-6,
    "attention_bias": False, "tie_word_embeddings": False, "max_position_embeddings": 256, "block_size": 4,
    "mask_token_id": 99, "eos_token_id": 98, "pad_token_id": 98,
})  # fmt: skip
"""A small DreamReasoner for tests."""


def check_dream(config: Mapping[str, object]) -> list[str]:
    """Everything in a config.json that Dream cannot run, one sentence each."""
    return _problems(config, DREAM, REASONER)


def check_reasoner(config: Mapping[str, object]) -> list[str]:
    """Everything in a config.json that DreamReasoner cannot run, one sentence each."""
    return _problems(config, REASONER, DREAM)


def dream_spec(config: Mapping[str, object]) -> DecoderSpec:
    """The decoder that Dream's config.json describes. Raises ConfigError with all problems."""
    return _spec(config, DREAM, REASONER)


def reasoner_spec(config: Mapping[str, object]) -> DecoderSpec:
    """The decoder that DreamReasoner's config.json describes. Raises ConfigError with all problems."""
    return _spec(config, REASONER, DREAM)


def _spec(config: Mapping[str, object], kind: Kind, other: Kind) -> DecoderSpec:
    problems = _problems(config, kind, other)
    spec, _ = read_standard_decoder(config, kind.traits)
    if spec is None or problems:
        raise ConfigError(problems)
    return spec


def _problems(config: Mapping[str, object], kind: Kind, other: Kind) -> list[str]:
    found = [
        f"{key} is {config[key]!r}, which is {other.name}'s ({other.architecture}), but the rest is read as "
        f"{kind.name}'s ({kind.architecture}). Correct config.json, or load the checkpoint as {other.name}."
        for key in _foreign_keys(config, kind, other)
    ]
    return [*found, *read_standard_decoder(config, kind.traits)[1]]


def _foreign_keys(config: Mapping[str, object], kind: Kind, other: Kind) -> list[str]:
    """Keys whose values only the other network has."""
    architectures, bias = config.get("architectures"), config.get("attention_bias")
    foreign = {
        "architectures": isinstance(architectures, list) and other.architecture in architectures,
        "attention_bias": bias is not None and bias is not kind.attention_bias,
        "block_size": config.get("block_size") is not None and not kind.block_size,
    }
    return [key for key, is_foreign in foreign.items() if is_foreign]
