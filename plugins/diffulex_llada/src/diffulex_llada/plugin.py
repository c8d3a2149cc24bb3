"""Registers the LLaDA family; imports no torch."""

from __future__ import annotations

from diffulex_core.hookspecs import Register
from diffulex_core.plugin import Capability, ModelFamily, SamplerTraits, hookimpl

PROVIDES = frozenset[str](
    (Capability.MASK_TOKEN, Capability.BLOCK_CAUSAL, Capability.FULL_PREFIX, Capability.FULL_ATTENTION)
)


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
            check_config="diffulex_llada.config:check_config",
            tiny="diffulex_llada.config:TINY",
            hf_reference="diffulex_llada.oracle:hf_reference",
        )
    )
