"""Broken subjects for the checks of `diffulex_core.testing.checks.requests`."""

from __future__ import annotations

from tests.conformance.mutant import Mutant

MUTANTS: tuple[Mutant, ...] = ()
