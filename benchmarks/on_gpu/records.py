"""Results, written after every case, so that a run that was cut off goes on where it ended."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs

Record = dict[str, Any]


@attrs.define(kw_only=True, eq=False)
class Results:
    """The file of one machine and commit.

    Attributes:
        path: JSON file.
        about: machine, commit and versions; results of another one are not continued.
        limits: what the device was measured to do; empty before.
        records: by part and case.
    """

    path: Path
    about: Mapping[str, Any]
    limits: dict[str, float] = attrs.field(factory=dict)
    records: dict[str, Record] = attrs.field(factory=dict)

    @classmethod
    def open(cls, path: Path, about: Mapping[str, Any], *, again: bool = False) -> Results:
        """Those in the file, if they are of this machine and commit; else none.

        Args:
            again: begin anew whatever is there.
        """
        results = cls(path=path, about=dict(about))
        if path.exists() and not again:
            found = json.loads(path.read_text())
            if found["about"] == results.about:
                results.limits, results.records = found["limits"], found["records"]
        return results

    def add(self, part: str, name: str, record: Record) -> None:
        """Keep a case's result and write the file."""
        self.records[f"{part}/{name}"] = {"part": part, "name": name, **record}
        self.write()

    def has(self, part: str, name: str) -> bool:
        """Whether the case was measured, or failed, before."""
        return f"{part}/{name}" in self.records

    def write(self) -> None:
        """Write everything, in one piece."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".part")
        data = {"about": self.about, "limits": self.limits, "records": self.records}
        partial.write_text(json.dumps(data, indent=1) + "\n")
        partial.replace(self.path)

    def of(self, part: str) -> list[Record]:
        """The records of a part, in the order in which they were made."""
        return [record for record in self.records.values() if record["part"] == part]


def run_part(
    results: Results,
    part: str,
    cases: Mapping[str, Callable[[], Record]],
    *,
    seconds: float,
    now: Callable[[], float],
    say: Callable[[str], None],
) -> list[str]:
    """Run the cases that have no result yet.

    Args:
        cases: by name; what one returns is its record. One that raises leaves a record with its error.
        seconds: begin no case after so many.
        now: a clock.
        say: is told of each case.
    Returns:
        The cases that were not begun; the next run does them.
    """
    began = now()
    left = [name for name in cases if not results.has(part, name)]
    while left and now() - began < seconds:
        name = left.pop(0)
        try:
            record = cases[name]()
        except Exception as error:  # noqa: BLE001 - the other cases are worth as much as before
            record = {"error": f"{type(error).__name__}: {error}"}
        results.add(part, name, record)
        say(f"{part}/{name}: {record.get('error') or record.get('summary', 'done')}")
    return left
