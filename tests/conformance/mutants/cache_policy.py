"""Broken subjects for the checks of `diffulex_core.testing.checks.cache_policy`."""

from __future__ import annotations

from tests.conformance.mutant import Mutant

MUTANTS: tuple[Mutant, ...] = ()
