"""Checks of schedulers: everybody is served, and nobody's answer depends on it."""

from __future__ import annotations

from diffulex_core.testing.check import AnyCheck

CHECKS: tuple[AnyCheck, ...] = ()
