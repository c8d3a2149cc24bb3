"""What the pytest plugin does once a test asks for checks; until then nothing of this is imported."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest

from diffulex_core.errors import DiffulexError
from diffulex_core.testing.effort import Tier, register_profiles
from diffulex_core.testing.generate import checks_for
from diffulex_core.testing.outcome import BoundCheck, expected_reason, refuse_unknown
from diffulex_core.testing.parametrize import Request


class ConformanceWarning(UserWarning):
    """A recommended check failed; a later minor release may require it."""


def generate(metafunc: pytest.Metafunc, tier: Tier) -> None:
    """Parametrise a marked test with the checks that it asks for; several decorators ask for all of theirs.

    Raises:
        pytest.UsageError: nothing is called that, or `expected_failures` names a check that does not run.
    """
    if "check" not in metafunc.fixturenames:
        raise pytest.UsageError(f"{metafunc.definition.nodeid} takes no argument `check`; write `def test(check):`.")
    register_profiles()
    cases = []
    for marker in metafunc.definition.iter_markers("diffulex_checks"):
        request: Request = marker.args[0]
        try:
            bound = checks_for(request.name, tier=tier, plugins=request.plugins)
            refuse_unknown(request.expected_failures, bound)
        except DiffulexError as error:
            raise pytest.UsageError(f"{metafunc.definition.nodeid}: {error}") from error
        cases += [_case(each, request) for each in bound if each.reason_against is None]
    metafunc.parametrize("check", cases)


def _case(bound: BoundCheck, request: Request) -> object:
    reason = expected_reason(bound, request.expected_failures)
    marks = [] if reason is None else [pytest.mark.xfail(reason=reason, strict=True)]
    return pytest.param(lenient(bound) if reason is None else bound, id=bound.id, marks=marks)


def lenient(bound: BoundCheck) -> Callable[[], None]:
    """The check; a failure of a recommended one warns."""
    if bound.check.level == "required":
        return bound

    def run() -> None:
        try:
            bound()
        except Exception as error:  # noqa: BLE001 - code under test may raise anything
            warnings.warn(f"{bound.id}: {type(error).__name__}: {error}", ConformanceWarning, stacklevel=2)

    return run
