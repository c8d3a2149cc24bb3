"""The strategy's configuration keys; importing this imports no torch."""

from __future__ import annotations

import attrs

from diffulex_core.plugin import key


@attrs.frozen(kw_only=True)
class DenoisingOptions:
    """How canvases are denoised. Defaults are those of the published generation code."""

    diffusion_gemma_max_denoising_steps: int = key(
        48,
        "Most denoising forwards for a canvas.",
        aliases=("max_denoising_steps",),
        minimum=1,
        generation_config=("max_denoising_steps",),
    )
    diffusion_gemma_stability_threshold: int = key(
        1,
        "A canvas may end early once its most probable tokens are those of so many steps before; 0 = always.",
        aliases=("stability_threshold",),
        minimum=0,
        generation_config=("stability_threshold",),
    )
    diffusion_gemma_confidence_threshold: float = key(
        0.005,
        "A canvas may end early once its mean entropy, in nats per position, is below this; 0 = never.",
        aliases=("confidence_threshold",),
        minimum=0,
        generation_config=("confidence_threshold",),
    )
    diffusion_gemma_t_min: float = key(
        0.4,
        "Temperature that the schedule falls towards; the last step is one part of max_denoising_steps above it.",
        aliases=("t_min",),
        minimum=0,
        generation_config=("t_min",),
    )
    diffusion_gemma_t_max: float = key(
        0.8,
        "Temperature of a canvas's first step.",
        aliases=("t_max",),
        minimum=0,
        generation_config=("t_max",),
    )
    diffusion_gemma_entropy_bound: float = key(
        0.1,
        "Nats that the positions before one, in order of entropy, may hold for it to keep its token in a step.",
        aliases=("entropy_bound",),
        minimum=0,
        generation_config=("sampler_config.entropy_bound",),
    )
    diffusion_gemma_shorten_last_canvas: bool = key(
        False,
        "Denoise only as much of the last canvas as the limit lets through. It costs fewer rows and may change tokens.",
        aliases=("shorten_last_canvas",),
    )
