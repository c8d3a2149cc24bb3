"""Broken subjects for the checks of `diffulex_core.testing.checks.families`."""

from __future__ import annotations

from tests.conformance.mutant import Mutant

MUTANTS: tuple[Mutant, ...] = ()
