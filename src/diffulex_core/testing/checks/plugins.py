"""Checks of whole plugins: importing and registering one disturbs nothing."""

from __future__ import annotations

from diffulex_core.testing.check import AnyCheck

CHECKS: tuple[AnyCheck, ...] = ()
