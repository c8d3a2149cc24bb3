"""Registers the DiffusionGemma family and its strategy; imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from diffulex_core.plugin import Capability, Component, DecodingStrategy, EngineConfig, ModelFamily, Register, hookimpl
from diffulex_gemma.options import DenoisingOptions


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
            default_strategy="diffusion_gemma",
            sizes=(256,),
            check_config="diffulex_gemma.config:check_config",
            tiny="diffulex_gemma.config:TINY",
            hf_reference="diffulex_gemma.oracle:hf_reference",
        )
    )


@hookimpl
def diffulex_register_strategies(register: Register[DecodingStrategy]) -> None:
    register(
        DecodingStrategy(
            name="diffusion_gemma",
            pattern="diffulex_gemma.pattern:causal_canvas",
            req="diffulex_gemma.request:CanvasRequest",
            sampler="diffusion_gemma",
            requires={Capability.SELF_CONDITIONING, Capability.ALIGNED_LOGITS},
            forces={"buffer_size": 1},
            sizes=(256,),
            config_cls="diffulex_gemma.options:DenoisingOptions",
        )
    )


@hookimpl
def diffulex_register_components(register: Register[Component]) -> None:
    register(Component(kind="sampler", name="diffusion_gemma", factory="diffulex_gemma.sampler:CanvasSampler"))


@hookimpl
def diffulex_validate_config(config: EngineConfig) -> Sequence[str]:
    options = config.strategy_options
    if not isinstance(options, DenoisingOptions):
        return []
    low, high = options.diffusion_gemma_t_min, options.diffusion_gemma_t_max
    if low <= high:
        return []
    problem = f"diffusion_gemma_t_min is {low}, above diffusion_gemma_t_max, which is {high}"
    return [f"{problem}: temperatures fall from t_max towards t_min. Give a t_min of at most t_max."]
