"""Strict reading of LLaDA2's config.json; importing this imports no torch.

What the published configuration class makes of missing keys (a vocabulary of 30592, biases, another epsilon) is never
what the checkpoints have, so those keys must be there.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import attrs

from diffulex_core.config_json import ConfigReader, StandardTraits, standard_decoder
from diffulex_core.layers import DecoderSpec
from diffulex_core.layers.moe import MoESpec
from diffulex_core.plugin import ConfigError

TINY: Mapping[str, object] = MappingProxyType({
    "architectures": ["LLaDA2MoeModelLM"], "model_type": "llada2_moe", "vocab_size": 97, "hidden_size": 32,
    "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12,
    "hidden_act": "silu", "use_qkv_bias": False, "use_bias": False, "use_qk_norm": True, "rms_norm_eps": 1e-6,
    "rope_theta": 600000.0, "partial_rotary_factor": 0.5, "max_position_embeddings": 256, "num_experts": 8,
    "num_experts_per_tok": 3, "moe_intermediate_size": 20, "num_shared_experts": 1, "n_group": 4, "topk_group": 2,
    "first_k_dense_replace": 1, "score_function": "sigmoid", "moe_router_enable_expert_bias": True,
    "norm_topk_prob": True, "routed_scaling_factor": 2.5, "router_dtype": "fp32", "tie_word_embeddings": False,
    "mask_token_id": 95, "eos_token_id": 96, "pad_token_id": 96,
})  # fmt: skip
"""A small configuration for tests."""

_OPTIONAL_VALUES: Mapping[str, object] = MappingProxyType({
    "norm_head": False, "norm_softmax": False, "using_split_qkv_in_self_attention": False, "use_sliding_window": False,
    "use_rmsnorm": True, "score_function": "sigmoid", "router_dtype": "fp32",
})  # fmt: skip
"""Keys that may be left out or null, but must not have another value."""


def check_config(config: Mapping[str, object]) -> list[str]:
    """Everything in a config.json that this family cannot run, one sentence each."""
    return _read(config)[1]


def decoder_spec(config: Mapping[str, object]) -> DecoderSpec:
    """The decoder that a config.json describes.

    Raises:
        ConfigError: listing all problems.
    """
    spec, problems = _read(config)
    if spec is None:
        raise ConfigError(problems)
    return spec


def _read(config: Mapping[str, object]) -> tuple[DecoderSpec | None, list[str]]:
    reader = ConfigReader(config)
    traits = StandardTraits(
        qkv_bias=reader.flag("use_qkv_bias"),
        out_bias=reader.flag("use_bias", required=True),
        # Several published files leave the key out, although their tensors are there.
        qk_norm=reader.flag("use_qk_norm", default=True),
        rope_fraction=_rope_fraction(reader),
        only=_OPTIONAL_VALUES,
    )
    spec = standard_decoder(reader, traits)
    experts, first_sparse = _experts(reader), reader.size("first_k_dense_replace", minimum=0)
    if spec is None or experts is None or reader.problems:
        return None, reader.problems
    if config.get("rotary_dim") not in (None, spec.rotary_dim):
        reader.problems.append(
            f"rotary_dim is {config['rotary_dim']!r}, but partial_rotary_factor gives {spec.rotary_dim}: remove one."
        )
        return None, reader.problems
    sparse = frozenset(range(first_sparse, spec.num_layers))
    return attrs.evolve(spec, moe=experts if sparse else None, sparse_layers=sparse), []


def _rope_fraction(reader: ConfigReader) -> float:
    """What stands in for a missing partial_rotary_factor."""
    nested = reader.config.get("rope_parameters")
    stated = {**(nested if isinstance(nested, Mapping) else {}), **reader.config}
    rotary, head = stated.get("rotary_dim"), stated.get("head_dim")
    if stated.get("partial_rotary_factor") is not None:
        return 1.0
    if isinstance(rotary, int) and isinstance(head, int) and 0 < rotary <= head:
        return rotary / head
    reader.reject("partial_rotary_factor", "the share of a head that is rotated, here or as rotary_dim")
    return 1.0


def _experts(reader: ConfigReader) -> MoESpec | None:
    """The experts, or None with their problems noted."""
    before = len(reader.problems)
    expert_size, shared = reader.size("moe_intermediate_size"), reader.size("num_shared_experts", minimum=0)
    reader.only("moe_shared_expert_intermediate_size", expert_size)
    experts, chosen = reader.size("num_experts"), reader.size("num_experts_per_tok")
    groups, kept = reader.size("n_group", minimum=0), reader.size("topk_group", minimum=0)
    renormalize, scale = reader.flag("norm_topk_prob", required=True), reader.number("routed_scaling_factor")
    bias = reader.flag("moe_router_enable_expert_bias", required=True)
    if len(reader.problems) > before:
        return None
    try:
        return MoESpec(
            num_experts=experts,
            experts_per_token=chosen,
            expert_size=expert_size,
            router="sigmoid",
            num_groups=groups,
            groups_kept=kept,
            renormalize=renormalize,
            scale=scale,
            correction_bias=bias,
            shared_size=expert_size * shared,
        )
    except ConfigError as error:
        reader.problems += error.problems
        return None
