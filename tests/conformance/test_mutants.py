"""Every check catches what it is there for: each has a broken implementation on which it fails."""

from __future__ import annotations

import pytest

from diffulex_core.testing.catalogue import CHECKS
from diffulex_core.testing.check import AnyCheck
from diffulex_core.testing.effort import Effort
from tests.conformance import kill_page
from tests.conformance.mutant import Mutant
from tests.conformance.mutants import MUTANTS


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_every_check_has_a_mutant(check: AnyCheck) -> None:
    assert any(mutant.check is check for mutant in MUTANTS)


def test_the_kill_table_has_every_check_and_every_mutant_and_all_are_caught() -> None:
    rows = kill_page.read(kill_page.PAGE)
    assert [row.key for row in rows] == kill_page.wanted(), "run `nox -s mutants -- --own` and commit the page"
    assert {row.check for row in rows} == {check.name for check in CHECKS}
    assert [row.mutant for row in rows if not row.caught] == []
    assert kill_page.PAGE.read_text(encoding="utf-8") == kill_page.render({row.key: row for row in rows})


def test_no_two_checks_and_no_two_mutants_share_a_name() -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    assert len({str(mutant) for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_a_mutant_is_caught_by_its_check(mutant: Mutant) -> None:
    assert mutant.is_killed_by(mutant.check, Effort(tier=mutant.check.tier, shrinks=False))
