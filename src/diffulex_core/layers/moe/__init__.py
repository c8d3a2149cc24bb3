"""Mixture of experts: routing, the way to the experts, and the experts. `MoESpec` is usable without torch."""

from diffulex_core.layers.moe.spec import Activation, MoESpec

__all__ = ["Activation", "MoESpec"]
