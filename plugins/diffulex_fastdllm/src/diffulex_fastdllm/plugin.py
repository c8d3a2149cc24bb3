"""Registers Fast-dLLM v2, the family and its strategy; imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

from diffulex_core.plugin import (
    Capability,
    DecodingStrategy,
    EngineConfig,
    ModelFamily,
    Register,
    SamplerTraits,
    hookimpl,
)

DUAL_CACHE = "dual_cache"
"""The network, whose logits are shifted, was trained to decode sub-blocks beside stale neighbours of their block."""


@hookimpl
def diffulex_register_models(register: Register[ModelFamily]) -> None:
    register(
        ModelFamily(
            name="fast_dllm_v2",
            architectures=("Fast_dLLM_QwenForCausalLM",),
            model_types=("Fast_dLLM_Qwen",),
            build="diffulex_fastdllm.model:build",
            weights="diffulex_fastdllm.weights:WEIGHTS",
            provides=frozenset[str]((Capability.MASK_TOKEN, Capability.BLOCK_CAUSAL, DUAL_CACHE)),
            logits="shifted",
            sampler=SamplerTraits(force_rule="after_semi_complete"),
            default_strategy="fast_dllm_v2",
            defaults={"block_size": 32, "mask_token_id": 151665, "eos_token_ids": (151645,)},
            mask_token="|<MASK>|",
            stop_tokens=("<|im_end|>",),
            check_config="diffulex_fastdllm.config:check_config",
            tiny="diffulex_fastdllm.config:TINY",
            hf_reference="diffulex_fastdllm.oracle:hf_reference",
        )
    )


@hookimpl
def diffulex_register_strategies(register: Register[DecodingStrategy]) -> None:
    register(
        DecodingStrategy(
            name="fast_dllm_v2",
            pattern="diffulex_fastdllm.pattern:block_causal",
            sub_blocks=True,
            req="diffulex_fastdllm.request:DualCacheRequest",
            requires={Capability.MASK_TOKEN, Capability.BLOCK_CAUSAL, DUAL_CACHE},
            thresholds={"accept_threshold"},
            defaults={"block_size": 8, "buffer_size": 4},
            config_cls="diffulex_fastdllm.options:DualCacheOptions",
        )
    )


@hookimpl
def diffulex_validate_config(config: EngineConfig) -> Iterable[str]:
    if config.strategy.name == "fast_dllm_v2" and config.decoding.buffer_size < 2:
        yield (
            f"buffer_size is {config.decoding.buffer_size}, but the strategy 'fast_dllm_v2' divides a block into "
            "sub-blocks: use at least 2, or the strategy 'multi_bd' for blocks without."
        )
