"""Turning logits into decisions: one packed call for all rows of a step, on every process that holds columns."""

from diffulex_core.sampling.packed import PackedSampler

__all__ = ["PackedSampler"]
