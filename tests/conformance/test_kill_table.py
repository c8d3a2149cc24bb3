"""The tool behind the kill table: it tells survivors, goes on where it was, and can be divided."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from diffulex_core.kv_cache import PagedKVCache
from diffulex_core.testing.subjects import KVCacheSubject
from tests.conformance import kill_page, kill_table, toy_checks
from tests.conformance.mutant import Mutant

Run = Callable[..., int]


def subject() -> KVCacheSubject:
    return KVCacheSubject(name="toy", factory=PagedKVCache)


CAUGHT = Mutant(name="is broken", check=toy_checks.check_breaks, subject=subject)
SURVIVES = Mutant(name="is not broken at all", check=toy_checks.check_holds, subject=subject)


@pytest.fixture
def page(tmp_path: Path) -> Path:
    return tmp_path / "table.md"


@pytest.fixture
def run(page: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    def call(mutants: tuple[Mutant, ...], *arguments: str) -> int:
        for module in (kill_page, kill_table):
            monkeypatch.setattr(module, "MUTANTS", mutants)
            monkeypatch.setattr(module, "CHECKS", (toy_checks.check_holds, toy_checks.check_breaks))
        monkeypatch.setattr(sys, "argv", ["kill_table", "--page", str(page), *arguments])
        return kill_table.main()

    return call


def test_a_mutant_that_survives_ends_the_run_with_an_error(
    run: Run, page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run((CAUGHT, SURVIVES)) == 1
    printed = capsys.readouterr().out
    assert "SURVIVES check_holds: is not broken at all" in printed
    assert "1 of 2 mutants caught" in printed
    assert {(row.mutant, row.caught) for row in kill_page.read(page)} == {
        ("is broken", True),
        ("is not broken at all", False),
    }
    assert "1 of 2 mutants are caught" in page.read_text()
    assert run((CAUGHT, SURVIVES)) == 1


def test_all_caught_is_a_success_and_what_the_page_has_is_not_run_again(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run((CAUGHT,)) == 0
    assert run((CAUGHT,)) == 0
    assert "1 mutants, 1 of them on the page already" in capsys.readouterr().out
    assert run((CAUGHT,), "--afresh") == 0
    assert "[1/1, " in capsys.readouterr().out


def test_a_row_of_a_mutant_that_is_gone_leaves_the_page(run: Run, page: Path) -> None:
    other = Mutant(name="is broken in another way", check=toy_checks.check_breaks, subject=subject)
    run((CAUGHT, other))
    run((CAUGHT,))
    assert [row.mutant for row in kill_page.read(page)] == ["is broken"]


def test_who_was_asked_alone_is_asked_for_the_others_later(run: Run, page: Path) -> None:
    run((CAUGHT,), "--own")
    [row] = kill_page.read(page)
    assert row.others is None
    run((CAUGHT,))
    [row] = kill_page.read(page)
    assert row.others == ()


def test_the_parts_of_the_mutants_are_all_of_them(run: Run, page: Path) -> None:
    mutants = tuple(
        Mutant(name=f"is broken in way {number}", check=toy_checks.check_breaks, subject=subject) for number in range(5)
    )
    for part in ("1/2", "2/2"):
        assert run(mutants, "--slice", part) == 0
    assert len(kill_page.read(page)) == 5
