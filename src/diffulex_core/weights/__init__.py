"""Strict loading of safetensors checkpoints: rules that name targets, and a loader that keeps the books."""

from diffulex_core.weights.dummy import dummy_weights
from diffulex_core.weights.loader import LoadReport, load_weights
from diffulex_core.weights.rules import Rename, Skip, Stray, WeightRules
from diffulex_core.weights.standard import ROTARY_TABLES, STANDARD_DECODER, STANDARD_EXPERTS
from diffulex_core.weights.types import LoadContext, NamesSources, Part, PartedModule, ResolvedWeight, ShardId

__all__ = [
    "ROTARY_TABLES",
    "STANDARD_DECODER",
    "STANDARD_EXPERTS",
    "LoadContext",
    "LoadReport",
    "NamesSources",
    "Part",
    "PartedModule",
    "Rename",
    "ResolvedWeight",
    "ShardId",
    "Skip",
    "Stray",
    "WeightRules",
    "dummy_weights",
    "load_weights",
]
