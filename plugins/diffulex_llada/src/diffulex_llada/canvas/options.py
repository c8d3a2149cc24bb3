"""Configuration keys of llada_canvas; importing this imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

import attrs

from diffulex_core.canvas.options import CanvasOptions
from diffulex_core.canvas.params import LONGEST
from diffulex_core.plugin import key

ALGORITHMS = ("quota", "confidence_threshold")
"""What `alg` may be here; the first is LLaDA's own."""

PRESETS: Mapping[str, Mapping[str, object]] = MappingProxyType(
    {
        "factual": {"temperature": 0.0, "gen_length": 64, "steps": 64, "remasking": "low_confidence"},
        "creative": {"temperature": 0.7, "gen_length": 128, "steps": 128, "remasking": "random"},
        "quality": {"temperature": 0.0, "cfg_scale": 0.5},
        "memory": {"sparse": {"enabled": True, "retention_ratio": 0.4}},
    }
)
"""Those that dLLM-Serve recommends; of a range that it leaves open, one value."""


@attrs.frozen(kw_only=True)
class LLaDACanvasOptions(CanvasOptions):
    """LLaDA's sampler: blocks from left to right, and in each a fixed number of positions in every step."""

    steps: int | None = key(
        None,
        "Forwards of an answer, spread over its blocks; null = one for each position.",
        minimum=1,
        maximum=LONGEST,
        generation_config=("steps",),
    )
    block_length: int | None = key(
        None,
        "Length of the blocks that are decided one after the other; null = the whole canvas.",
        minimum=1,
        maximum=LONGEST,
        generation_config=("block_length",),
    )
    remasking: Literal["low_confidence", "random"] = key(
        "low_confidence",
        "Which positions stay masked in a step: those of low confidence, or random ones.",
        generation_config=("remasking",),
    )
    alg: Literal["quota", "confidence_threshold"] = key(
        "quota",
        "quota decides a fixed number of positions in every step; confidence_threshold all that reach "
        "accept_threshold, at least one, in as few steps as that takes.",
    )
