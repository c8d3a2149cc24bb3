"""Strict loading of safetensors checkpoints: rules that name targets, and a loader that keeps the books."""

from diffulex_core.weights.loader import LoadReport, load_weights
from diffulex_core.weights.rules import Rename, Skip, WeightRules
from diffulex_core.weights.types import LoadContext, NamesSources, PackedModule, ResolvedWeight, ShardId

__all__ = [
    "LoadContext",
    "LoadReport",
    "NamesSources",
    "PackedModule",
    "Rename",
    "ResolvedWeight",
    "ShardId",
    "Skip",
    "WeightRules",
    "load_weights",
]
