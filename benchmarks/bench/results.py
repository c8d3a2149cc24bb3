"""What was measured, as values that go to JSON and come back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import cattrs
from benchmarks.bench.turns import Spread, ratios
from benchmarks.bench.work import Work


@attrs.frozen(kw_only=True)
class Contended:
    """One contender of a cell over all rounds.

    Attributes:
        dtype: of its weights.
        wall, cpu: seconds of each round: of the clock, and of all threads of its process.
        tokens: that the whole work decides; `steps` of `planned_steps` were run.
        rows, head_rows: of the steps that were run.
        first_block: seconds to the first decided block of each round; empty where it is not known.
        outside: seconds of each round in the engine but not in its runner; empty for others.
        peak_rss: bytes; None where it was not measured.
        fraction: of what the machine can do at best, of the median round.
    """

    name: str
    dtype: str
    work: Work
    wall: list[float]
    cpu: list[float]
    tokens: int
    steps: int
    planned_steps: int
    rows: int
    head_rows: int
    first_block: list[float]
    outside: list[float]
    peak_rss: int | None
    fraction: float | None

    @property
    def sampled(self) -> bool:
        """Only some of the steps were run."""
        return self.steps < self.planned_steps

    @property
    def per_token(self) -> list[float]:
        """Seconds for a token of each round, as if all steps had been run."""
        return [seconds * self.planned_steps / self.steps / self.tokens for seconds in self.wall]

    @property
    def cpu_per_token(self) -> list[float]:
        """As `per_token`, of CPU time."""
        return [seconds * self.planned_steps / self.steps / self.tokens for seconds in self.cpu]


@attrs.frozen(kw_only=True)
class Outcome:
    """A cell.

    Attributes:
        others: share of the machine that others took while it was measured.
        citable: nothing else ran.
        agreement: share of positions with the same token, where that was looked at.
    """

    name: str
    section: str
    network: str
    contenders: list[Contended]
    others: float
    citable: bool
    agreement: float | None

    def faster(self, contender: Contended, *, by_cpu: bool = False) -> Spread:
        """How many times faster than the first contender, in tokens/s."""
        base = self.contenders[0]
        if by_cpu:
            return ratios(base.cpu_per_token, contender.cpu_per_token)
        return ratios(base.per_token, contender.per_token)


@attrs.frozen(kw_only=True)
class Report:
    """A whole run of the benchmark."""

    commit: str
    began: str
    machine: Mapping[str, Any]
    limits: Mapping[str, Any]
    imports: Mapping[str, Any]
    trained: list[dict[str, Any]]
    gemma: list[dict[str, Any]]
    outcomes: list[Outcome]
    failures: dict[str, str] = attrs.field(factory=dict)
    """What cells ended with that have no outcome, by their names."""

    @property
    def citable(self) -> bool:
        """Every cell was measured on an idle machine."""
        return all(outcome.citable for outcome in self.outcomes)

    def to_json(self) -> str:
        return json.dumps(cattrs.unstructure(self), indent=1) + "\n"

    @classmethod
    def read(cls, path: Path) -> Report:
        """
        Raises:
            ValueError: the file holds something else.
        """
        try:
            report: Report = cattrs.structure(json.loads(path.read_text()), cls)
        except (KeyError, TypeError, cattrs.BaseValidationError) as error:
            raise ValueError(f"{path} holds no results of this benchmark.") from error
        return report
