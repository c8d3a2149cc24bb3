"""Turning logits into decisions: one packed call for all rows of a step."""

from diffulex_core.sampling.packed import PackedSampler

__all__ = ["PackedSampler"]
