"""Registers the DiffusionGemma family; imports no torch."""

from __future__ import annotations

from diffulex_core.hookspecs import Register
from diffulex_core.plugin import Capability, ModelFamily, hookimpl


@hookimpl
def diffulex_register_models(register: Register[ModelFamily]) -> None:
    register(
        ModelFamily(
            name="diffusion_gemma",
            aliases=("diffusiongemma",),
            architectures=("DiffusionGemmaForBlockDiffusion",),
            model_types=("diffusion_gemma",),
            build="diffulex_gemma.model:build",
            weights="diffulex_gemma.weights:WEIGHTS",
            provides={Capability.SELF_CONDITIONING},
            logits="aligned",
            sizes=(256,),
            check_config="diffulex_gemma.config:check_config",
            tiny="diffulex_gemma.config:TINY",
            hf_reference="diffulex_gemma.oracle:hf_reference",
        )
    )
