"""Configuration keys of dream_canvas; importing this imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

import attrs

from diffulex_core.canvas.options import CanvasOptions
from diffulex_core.canvas.params import LONGEST
from diffulex_core.plugin import key

ALGORITHMS = ("origin", "maskgit_plus", "topk_margin", "entropy", "confidence_threshold")
"""What `alg` may be here; the first is Dream's default."""

PRESETS: Mapping[str, Mapping[str, object]] = MappingProxyType(
    {
        "factual": {"temperature": 0.0, "gen_length": 64, "steps": 64, "alg": "maskgit_plus"},
        "creative": {"temperature": 0.7, "gen_length": 128, "steps": 128, "alg": "origin"},
        "quality": {"temperature": 0.0, "cfg_scale": 0.5, "alg": "maskgit_plus"},
        "memory": {"sparse": {"enabled": True, "retention_ratio": 0.4}},
    }
)
"""Those that dLLM-Serve recommends for LLaDA's algorithm, in the words of Dream's: confident or random positions."""


@attrs.frozen(kw_only=True)
class DreamCanvasOptions(CanvasOptions):
    """Dream's samplers: the whole canvas at once, along a grid of times from 1 to `eps`."""

    steps: int = key(
        512,
        "Steps of the time grid; those that decide nothing cost no forward, see skip_empty_steps.",
        minimum=1,
        maximum=LONGEST,
        generation_config=("steps",),
    )
    alg: Literal["origin", "maskgit_plus", "topk_margin", "entropy", "confidence_threshold"] = key(
        "origin",
        "Which positions are decided first: origin = random ones; maskgit_plus = the most probable tokens; topk_margin "
        "= the largest lead over the second token; entropy = the most certain; confidence_threshold = as maskgit_plus, "
        "but none below accept_threshold besides the first.",
        generation_config=("alg",),
    )
    alg_temp: float | None = key(
        None,
        "Above 0 positions are drawn with weights softmax(confidence / alg_temp); null or 0 = the best come first.",
        minimum=0,
        maximum=1e6,
        generation_config=("alg_temp",),
    )
    eps: float = key(
        1e-3, "Last time of the grid, above 0 and below 1.", minimum=1e-9, maximum=0.999999, generation_config=("eps",)
    )
    skip_empty_steps: bool = key(True, "Leave out forwards of steps that decide nothing; false = Dream's own count.")
