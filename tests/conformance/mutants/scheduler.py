"""Broken subjects for the checks of `diffulex_core.testing.checks.scheduler`."""

from __future__ import annotations

from tests.conformance.mutant import Mutant

MUTANTS: tuple[Mutant, ...] = ()
