"""Registers the LLaDA families; imports no torch."""

from __future__ import annotations

from diffulex_core.plugin import Capability, DecodingStrategy, ModelFamily, Register, SamplerTraits, hookimpl
from diffulex_llada.canvas.options import PRESETS

PROVIDES = frozenset[str](
    (Capability.MASK_TOKEN, Capability.BLOCK_CAUSAL, Capability.FULL_PREFIX, Capability.FULL_ATTENTION)
)
LLADA2_PROVIDES = frozenset[str](
    (Capability.MASK_TOKEN, Capability.BLOCK_CAUSAL, Capability.EDIT, Capability.SOFT_INPUTS)
)
"""2.1 was trained to revise tokens and DMax to read blended embeddings; config.json tells none of them from 2.0."""


@hookimpl
def diffulex_register_models(register: Register[ModelFamily]) -> None:
    register(
        ModelFamily(
            name="llada",
            architectures=("LLaDAModelLM",),
            model_types=("llada",),
            build="diffulex_llada.model:build",
            weights="diffulex_llada.weights:WEIGHTS",
            provides=PROVIDES,
            logits="aligned",
            sampler=SamplerTraits(force_rule="after_semi_complete"),
            default_strategy="d2f",
            mask_token="<|mdm_mask|>",
            stop_tokens=("<|eot_id|>",),
            check_config="diffulex_llada.config:check_config",
            tiny="diffulex_llada.config:TINY",
            hf_reference="diffulex_llada.oracle:hf_reference",
        )
    )
    register(
        ModelFamily(
            name="llada2",
            aliases=("llada2_moe", "llada2_mini", "llada2dot1_mini", "llada2_mini_dmax"),
            alias_settings={"llada2dot1_mini": {"sampling_mode": "edit"}},
            architectures=("LLaDA2MoeModelLM",),
            model_types=("llada2_moe", "llada2_moe_veomni"),
            build="diffulex_llada.llada2.model:build",
            weights="diffulex_llada.llada2.weights:WEIGHTS",
            provides=LLADA2_PROVIDES,
            logits="aligned",
            sampler=SamplerTraits(force_rule="after_semi_complete"),
            default_strategy="multi_bd",
            defaults={"block_size": 32, "mask_token_id": 156895},
            mask_token="<|mask|>",
            stop_tokens=("<|role_end|>",),
            check_config="diffulex_llada.llada2.config:check_config",
            tiny="diffulex_llada.llada2.config:TINY",
            hf_reference="diffulex_llada.llada2.oracle:hf_reference",
        )
    )


@hookimpl
def diffulex_register_strategies(register: Register[DecodingStrategy]) -> None:
    register(
        DecodingStrategy(
            name="llada_canvas",
            pattern="diffulex_core.canvas.pattern:full_canvas",
            req="diffulex_llada.canvas.request:make_request",
            requires={Capability.MASK_TOKEN, Capability.FULL_ATTENTION},
            thresholds={"accept_threshold"},
            config_cls="diffulex_llada.canvas.options:LLaDACanvasOptions",
            presets=PRESETS,
            # Any token of a canvas changes the K/V of all others.
            forces={"enable_prefix_caching": False},
            # A canvas has no buffer, and blocks that are called block_length.
            unread={"block_size", "buffer_size"},
        )
    )
