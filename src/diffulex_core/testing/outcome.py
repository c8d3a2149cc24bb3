"""Running checks one by one, and what came of each."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import attrs

from diffulex_core.errors import ConfigError
from diffulex_core.registry import did_you_mean
from diffulex_core.testing.check import AnyCheck, CheckFailed, Level
from diffulex_core.testing.effort import Effort
from diffulex_core.testing.subjects import Subject

Status = Literal["passed", "failed", "warned", "expected", "unexpected", "not applicable"]
"""warned: a recommended check failed. expected: a declared failure did. unexpected: a declared failure passed."""


@attrs.frozen(kw_only=True, eq=False)
class BoundCheck:
    """A check with the subject that it is run on.

    Attributes:
        check: the property.
        subject: the thing under test.
        effort: what may be spent.
    """

    check: AnyCheck
    subject: Subject
    effort: Effort

    @property
    def id(self) -> str:
        return f"{self.check.name}[{self.subject.label}]"

    @property
    def reason_against(self) -> str | None:
        """Why the check says nothing about this subject, or is not for this effort, or None."""
        if not self.effort.covers(self.check.tier):
            return f"it runs in the tier {self.check.tier}"
        try:
            return self.check.when(self.subject)
        except Exception:  # noqa: BLE001 - code under test may raise anything; then the check runs, and tells
            return None

    def __call__(self) -> None:
        """Run it; raises when the subject lacks the property."""
        self.check.when(self.subject)
        try:
            self.check(self.subject, self.effort)
        except SystemExit as error:
            raise CheckFailed(f"code under test ended the process, with status {error.code!r}.") from error

    def __str__(self) -> str:
        return self.id


@attrs.frozen(kw_only=True)
class Outcome:
    """What came of one check.

    Attributes:
        check, subject: their names.
        level: of the check.
        status: see `Status`.
        seconds: wall time.
        message: of the failure, or why the check does not apply.
        details: traceback of the failure.
    """

    check: str
    subject: str
    level: Level
    status: Status
    seconds: float = 0.0
    message: str = ""
    details: str = ""

    @property
    def bad(self) -> bool:
        """Whether the subject does not conform."""
        return self.status in ("failed", "unexpected")


def refuse_unknown(expected_failures: Mapping[str, str], checks: Iterable[BoundCheck]) -> None:
    """Raise ConfigError for declared failures of checks that are not run, as they hide nothing, or without a reason."""
    if silent := sorted(name for name, reason in expected_failures.items() if not reason.strip()):
        raise ConfigError([f"expected_failures gives no reason for {', '.join(silent)}. Say why it fails for now."])
    checks = list(checks)
    known = {name for each in checks for name in (each.check.name, each.id)}
    if unknown := sorted(expected_failures.keys() - known):
        hints = " ".join(did_you_mean(name, sorted(known)) for name in unknown)
        raise ConfigError(
            [f"expected_failures names {', '.join(unknown)}, and no such check runs here. {hints} Remove what is gone."]
        )


def expected_reason(bound: BoundCheck, expected_failures: Mapping[str, str]) -> str | None:
    """Why the check is expected to fail, by its name or its full id; None when it is not."""
    return expected_failures.get(bound.id, expected_failures.get(bound.check.name))


def run_checks(checks: Iterable[BoundCheck], expected_failures: Mapping[str, str] | None = None) -> Iterator[Outcome]:
    """Run checks in order.

    Args:
        checks: what `checks_for` returns.
        expected_failures: reasons by the name of a check (or its id, "check_name[subject]").
    Raises:
        ConfigError: `expected_failures` names a check that is not run.
    """
    checks = list(checks)
    expected = expected_failures or {}
    refuse_unknown(expected, checks)
    for bound in checks:
        yield _outcome(bound, expected_reason(bound, expected))


def _outcome(bound: BoundCheck, expected: str | None) -> Outcome:
    common: dict[str, Any] = {
        "check": bound.check.name,
        "subject": bound.subject.label,
        "level": bound.check.level,
    }
    if (reason := bound.reason_against) is not None:
        return Outcome(**common, status="not applicable", message=reason)
    begin = time.perf_counter()
    try:
        bound()
    except Exception as error:  # noqa: BLE001 - code under test may raise anything, and the report goes on
        status: Status = "expected" if expected else "warned" if bound.check.level == "recommended" else "failed"
        text = expected or f"{type(error).__name__}: {error}"
        details = "" if expected else "".join(traceback.format_exception(error))
        return Outcome(**common, status=status, seconds=time.perf_counter() - begin, message=text, details=details)
    seconds = time.perf_counter() - begin
    if expected:
        return Outcome(
            **common,
            status="unexpected",
            seconds=seconds,
            message=f"declared to fail ({expected}), but it passes. Remove it from expected_failures.",
        )
    return Outcome(**common, status="passed", seconds=seconds)
