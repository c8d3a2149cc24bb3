"""The page that says which check catches which mutant, as rows that can be read back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import attrs

from diffulex_core.testing.catalogue import CHECKS
from tests.conformance.mutants import MUTANTS

PAGE = Path(__file__).parents[2] / "docs/kill-table.md"
NOT_ASKED = "not asked"
"""Stands where only the check was asked that the mutant was made for."""

LEAD = (
    "Which broken implementation is caught by which [check](conformance.md#checks). `nox -s mutants` writes it:",
    "every check meets every mutant of its kind, and the session fails when one survives the check that it was made",
    "for. Those pairs run on every change as well (`tests/conformance/test_mutants.py`).",
)

Key = tuple[str, str]
"""Names of a check and of a mutant."""


@attrs.frozen(kw_only=True)
class Row:
    """What came of one mutant.

    Attributes:
        check: name of the check that it was made for.
        mutant: what is broken.
        caught: whether that check caught it.
        others: names of all other checks that did; None where they were not asked.
    """

    check: str
    mutant: str
    caught: bool
    others: tuple[str, ...] | None

    @property
    def key(self) -> Key:
        return self.check, self.mutant


def wanted() -> list[Key]:
    """Of every mutant that there is, in the order of the page: that of the checks."""
    order = {check.name: place for place, check in enumerate(CHECKS)}
    return sorted(((mutant.check.name, mutant.name) for mutant in MUTANTS), key=lambda key: order[key[0]])


def read(page: Path) -> list[Row]:
    """The rows of a page; none where there is no page."""
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    found = re.findall(r"^\| `(check_\w+)` \| (.+?) \| (yes|NO) \| (.*?) ?\|$", text, re.MULTILINE)
    return [
        Row(check=check, mutant=mutant, caught=caught == "yes", others=_others(cell))
        for check, mutant, caught, cell in found
    ]


def _others(cell: str) -> tuple[str, ...] | None:
    return None if cell == NOT_ASKED else tuple(re.findall(r"`(check_\w+)`", cell))


def render(rows: Mapping[Key, Row]) -> str:
    """The page with those rows whose mutants there are."""
    kept = [rows[key] for key in wanted() if key in rows]
    asked = sum(row.others is not None for row in kept)
    lines = [
        "# Kill table",
        "",
        *LEAD,
        "",
        f"{sum(row.caught for row in kept)} of {len(kept)} mutants are caught by the check that they were made for;",
        f"there are {len(CHECKS)} checks. The other checks were asked of {asked} of the mutants.",
        "",
        "| Check | Mutant | Caught | Also caught by |",
        "| --- | --- | --- | --- |",
    ]
    lines += [f"| `{row.check}` | {row.mutant} | {'yes' if row.caught else 'NO'} | {_cell(row)} |" for row in kept]
    return "\n".join([*lines, ""])


def _cell(row: Row) -> str:
    return NOT_ASKED if row.others is None else ", ".join(f"`{name}`" for name in row.others)


def write(page: Path, rows: Mapping[Key, Row]) -> None:
    """Replace the page as a whole, so that whoever reads it meanwhile finds a complete one."""
    new = page.with_suffix(".new")
    new.write_text(render(rows), encoding="utf-8")
    new.replace(page)
