"""The conformance kit: checks that tell a plugin's author whether it is right. Installed by `diffulex-core[testing]`.

`diffulex plugins check NAME` runs them without any file; `parametrize_with_checks` makes pytest tests of them.
"""

from __future__ import annotations

from diffulex_core.testing.check import Check, CheckFailed, check
from diffulex_core.testing.collect import ConformanceWarning
from diffulex_core.testing.effort import Effort
from diffulex_core.testing.generate import checks_for
from diffulex_core.testing.outcome import BoundCheck, Outcome, run_checks
from diffulex_core.testing.parametrize import parametrize_with_checks

__all__ = [
    "BoundCheck",
    "Check",
    "CheckFailed",
    "ConformanceWarning",
    "Effort",
    "Outcome",
    "check",
    "checks_for",
    "parametrize_with_checks",
    "run_checks",
]
