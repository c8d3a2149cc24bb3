"""A deliberately broken implementation, and the check that must catch it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import attrs

from diffulex_core.testing.check import AnyCheck
from diffulex_core.testing.effort import Effort
from diffulex_core.testing.subjects import Subject


@attrs.frozen(kw_only=True, eq=False)
class Mutant:
    """One broken implementation.

    Attributes:
        name: what is broken, in a few words.
        check: the check that must fail on it.
        subject: makes the broken subject.
        around: stands around making and checking it, where it needs files or modules.
    """

    name: str
    check: AnyCheck
    subject: Callable[[], Subject]
    around: Callable[[], AbstractContextManager[object]] = nullcontext

    def is_killed_by(self, check: AnyCheck, effort: Effort) -> bool:
        """Whether a check fails on it."""
        with self.around():
            return self._fails(check, effort)

    def _fails(self, check: AnyCheck, effort: Effort) -> bool:
        subject = self.subject()
        if not isinstance(subject, check.subject) or check.when(subject) is not None:
            return False
        try:
            check(subject, effort)
        except Exception:  # noqa: BLE001 - a broken implementation may break in any way, and that is seen too
            return True
        return False

    def __str__(self) -> str:
        return f"{self.check.name}: {self.name}"
