"""Checks of KV caches: who may read which page."""

from __future__ import annotations

from diffulex_core.testing.check import AnyCheck

CHECKS: tuple[AnyCheck, ...] = ()
