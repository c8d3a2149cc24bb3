"""W1 to W7 for every registered family, every way to store its weights, with the head tied and untied."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.families.layouts import layouts
from tests.families.subjects import SUBJECTS
from tests.families.weight_checks import CHECKS, Case

CASES = [Case(subject, layout) for subject in SUBJECTS for layout in layouts(subject)]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_weights_keep_their_properties(case: Case, check: str, tmp_path: Path) -> None:
    CHECKS[check](case, tmp_path)
