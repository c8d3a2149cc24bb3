"""What a run found: numbers, and checks with what they saw."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import attrs


@attrs.frozen(kw_only=True)
class Check:
    """What must hold, whether it did, and what was seen."""

    what: str
    good: bool
    seen: str


@attrs.define(kw_only=True)
class Report:
    """A run.

    Attributes:
        about: the machine, commit and versions.
        sizes: how much of everything was done.
        numbers: what was measured, by scene.
        checks: in the order in which they were made.
        complete: whether the run came to its end.
    """

    about: Mapping[str, Any]
    sizes: Mapping[str, Any]
    numbers: dict[str, dict[str, Any]] = attrs.field(factory=dict)
    checks: list[Check] = attrs.field(factory=list)
    complete: bool = False

    @property
    def good(self) -> bool:
        """Whether everything was done and every check holds."""
        return self.complete and all(check.good for check in self.checks)

    def check(self, what: str, good: bool, seen: object) -> None:
        """Write down a check, and say it."""
        self.checks.append(Check(what=what, good=good, seen=str(seen)))
        print(f"{'ok  ' if good else 'FAIL'} {what}: {seen}", flush=True)

    def to_json(self) -> str:
        """As `read` takes it."""
        return json.dumps(attrs.asdict(self), indent=1) + "\n"

    @classmethod
    def read(cls, path: Path) -> Self:
        """A report that was written."""
        data = json.loads(path.read_text())
        return cls(**{**data, "checks": [Check(**check) for check in data["checks"]]})
