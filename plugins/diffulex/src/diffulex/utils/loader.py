"""Strict loading of checkpoints, and the tables that say where each tensor goes."""

from diffulex_core.weights import LoadReport, Rename, Skip, WeightRules, load_weights

__all__ = ["LoadReport", "Rename", "Skip", "WeightRules", "load_weights"]
