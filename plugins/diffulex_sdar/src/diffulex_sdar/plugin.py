"""Registers SDAR, SDAR-MoE and Stable-DiffCoder; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from diffulex_core.plugin import Capability, ModelFamily, Register, SamplerTraits, hookimpl

PROVIDES = frozenset[str]((Capability.MASK_TOKEN, Capability.BLOCK_CAUSAL))
SIZES = (64,)
"""The largest block of SDAR's checkpoints; the others are every family's."""
TOKENIZER_CLASSES: Mapping[str, str] = MappingProxyType({"Qwen2Tokenizer": "transformers:Qwen2Tokenizer"})
"""Named because transformers would look a class up by the type of the model, which it does not know."""


@hookimpl
def diffulex_register_models(register: Register[ModelFamily]) -> None:
    register(
        ModelFamily(
            name="sdar",
            architectures=("SDARForCausalLM",),
            model_types=("sdar",),
            build="diffulex_sdar.model:build_sdar",
            weights="diffulex_sdar.weights:WEIGHTS",
            provides=PROVIDES,
            logits="aligned",
            sampler=SamplerTraits(force_rule="after_semi_complete"),
            default_strategy="multi_bd",
            defaults={"block_size": 4, "mask_token_id": 151669},
            mask_token="<|MASK|>",
            stop_tokens=("<|im_end|>",),
            sizes=SIZES,
            tokenizer_classes=TOKENIZER_CLASSES,
            check_config="diffulex_sdar.config:check_sdar",
            tiny="diffulex_sdar.config:TINY_SDAR",
            hf_reference="diffulex_sdar.oracle:qwen3",
        )
    )
    register(
        ModelFamily(
            name="sdar_moe",
            architectures=("SDARMoeForCausalLM",),
            model_types=("sdar_moe",),
            build="diffulex_sdar.model:build_sdar_moe",
            weights="diffulex_sdar.weights:WEIGHTS",
            provides=PROVIDES,
            logits="aligned",
            sampler=SamplerTraits(force_rule="after_semi_complete"),
            default_strategy="multi_bd",
            defaults={"block_size": 4, "mask_token_id": 151669},
            mask_token="<|MASK|>",
            stop_tokens=("<|im_end|>",),
            sizes=SIZES,
            tokenizer_classes=TOKENIZER_CLASSES,
            check_config="diffulex_sdar.config:check_sdar_moe",
            tiny="diffulex_sdar.config:TINY_SDAR_MOE",
            hf_reference="diffulex_sdar.oracle:qwen3_moe",
        )
    )
    register(
        ModelFamily(
            name="stable_diffcoder",
            # Its model_type is "llama", like that of autoregressive checkpoints; only the architecture is its own.
            architectures=("StableDiffcoderForCausalLM",),
            build="diffulex_sdar.model:build_stable_diffcoder",
            weights="diffulex_sdar.weights:WEIGHTS",
            provides=PROVIDES,
            logits="aligned",
            sampler=SamplerTraits(force_rule="always"),
            default_strategy="multi_bd",
            defaults={"block_size": 4, "mask_token_id": 5},
            mask_token="<[MASK_TOKEN]>",
            check_config="diffulex_sdar.config:check_stable_diffcoder",
            tiny="diffulex_sdar.config:TINY_STABLE_DIFFCODER",
            hf_reference="diffulex_sdar.oracle:llama",
        )
    )
