"""W1 to W7 for every registered family, every way to store its weights, with the head tied and untied."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.families.faults import FAULTS, Fault
from tests.families.layouts import layouts
from tests.families.subjects import PLAIN, SUBJECTS
from tests.families.weight_checks import CHECKS, Case, check_faults


def cases() -> Iterator[Case]:
    """All layouts of the small config.json; with the head tied instead only what that changes."""
    for subject in SUBJECTS:
        found = list(layouts(subject))
        changed = [layout for layout in found if layout.name in ("copies", "other names")]
        yield from (Case(subject, layout) for layout in (changed if changed and subject not in PLAIN else found))


CASES = list(cases())


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_weights_keep_their_properties(case: Case, check: str, tmp_path: Path) -> None:
    CHECKS[check](case, tmp_path)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("case", {case.subject: case for case in reversed(CASES)}.values(), ids=str)
def test_a_fault_alone_is_told_alone(case: Case, fault: type[Fault], tmp_path: Path) -> None:
    check_faults(case, tmp_path / "corrupt", [fault])
