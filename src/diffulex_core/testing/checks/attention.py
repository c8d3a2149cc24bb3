"""Checks of attention backends: they agree with dense attention in float64."""

from __future__ import annotations

from diffulex_core.testing.check import AnyCheck

CHECKS: tuple[AnyCheck, ...] = ()
