"""Checks of networks in a runner: outputs depend on what is visible, and on nothing else."""

from __future__ import annotations

from diffulex_core.testing.check import AnyCheck

CHECKS: tuple[AnyCheck, ...] = ()
