"""Checks of weight resolvers: every number of a checkpoint arrives where it belongs."""

from __future__ import annotations

from diffulex_core.testing.check import AnyCheck

CHECKS: tuple[AnyCheck, ...] = ()
