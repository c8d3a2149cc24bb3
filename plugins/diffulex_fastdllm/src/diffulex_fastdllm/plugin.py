"""Registers Fast-dLLM v2; imports no torch."""

from __future__ import annotations

from diffulex_core.hookspecs import Register
from diffulex_core.plugin import Capability, ModelFamily, SamplerTraits, hookimpl


@hookimpl
def diffulex_register_models(register: Register[ModelFamily]) -> None:
    register(
        ModelFamily(
            name="fast_dllm_v2",
            architectures=("Fast_dLLM_QwenForCausalLM",),
            model_types=("Fast_dLLM_Qwen",),
            build="diffulex_fastdllm.model:build",
            weights="diffulex_fastdllm.weights:WEIGHTS",
            provides=frozenset[str]((Capability.MASK_TOKEN, Capability.BLOCK_CAUSAL)),
            logits="shifted",
            sampler=SamplerTraits(force_rule="after_semi_complete"),
            default_strategy="multi_bd",
            defaults={"block_size": 32, "mask_token_id": 151665, "eos_token_ids": (151645,)},
            mask_token="|<MASK>|",
            stop_tokens=("<|im_end|>",),
            check_config="diffulex_fastdllm.config:check_config",
            tiny="diffulex_fastdllm.config:TINY",
            hf_reference="diffulex_fastdllm.oracle:hf_reference",
        )
    )
