"""Every check catches what it is there for: each has a broken implementation on which it fails."""

from __future__ import annotations

import pytest

from diffulex_core.testing.catalogue import CHECKS
from diffulex_core.testing.check import AnyCheck
from diffulex_core.testing.effort import Effort
from tests.conformance.mutant import Mutant
from tests.conformance.mutants import MUTANTS


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_every_check_has_a_mutant(check: AnyCheck) -> None:
    assert any(mutant.check is check for mutant in MUTANTS)


def test_no_two_checks_and_no_two_mutants_share_a_name() -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    assert len({str(mutant) for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_a_mutant_is_caught_by_its_check(mutant: Mutant) -> None:
    assert mutant.is_killed_by(mutant.check, Effort(tier=mutant.check.tier, shrinks=False))
