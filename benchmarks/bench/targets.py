"""What the project aims at, beside what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import attrs
from benchmarks.bench.results import Contended, Outcome, Report
from benchmarks.bench.turns import Spread


@attrs.frozen(kw_only=True)
class Target:
    """How many times faster, in tokens/s, the last contender of some cells shall be than their first.

    Attributes:
        section: of the cells.
        dtype: of the last contender.
        networks: names of those that it is for.
        prompt, output: lengths that it is for; any without.
        block: length of the last contender's blocks; any without.
    """

    what: str
    wanted: float
    section: str
    dtype: str
    networks: frozenset[str] = frozenset(("35M", "60M", "150M"))
    prompt: int | None = None
    output: int | None = None
    block: int | None = None

    def fits(self, outcome: Outcome, last: Contended) -> bool:
        """The cell is one of these."""
        work = last.work
        wanted = ((self.prompt, work.prompt), (self.output, work.output), (self.block, work.block_length))
        return (
            (outcome.section, last.dtype) == (self.section, self.dtype)
            and outcome.network in self.networks
            and last.planned_steps > 1
            and all(number in (None, found) for number, found in wanted)
        )


@attrs.frozen(kw_only=True)
class Verdict:
    """A line of the table: `found` is a ratio where `at_least`, else a time."""

    what: str
    where: str
    wanted: float
    found: Spread
    unit: str
    at_least: bool

    @property
    def reached(self) -> bool:
        """By the median."""
        return self.found.median >= self.wanted if self.at_least else self.found.median <= self.wanted


TARGETS = (
    Target(
        what="blocks against the authors' loop, prompt 64 + 256", section="blocks", dtype="float32", prompt=64,
        output=256, wanted=5,
    ),
    Target(
        what="the same in bfloat16", section="blocks", dtype="bfloat16", prompt=64, output=256, wanted=5,
    ),
    Target(
        what="blocks against the authors' loop, prompt 512 + 256", section="blocks", dtype="float32", prompt=512,
        output=256, wanted=10,
    ),
    Target(what="whole canvases against the authors' loop", section="canvas", dtype="float32", wanted=1.25),
    Target(what="the same in bfloat16", section="canvas", dtype="bfloat16", wanted=1.4),
    Target(what="whole canvases against llama.cpp's forwards", section="llamacpp", dtype="float32", wanted=1.15),
    Target(what="the same in bfloat16", section="llamacpp", dtype="bfloat16", wanted=1.3),
    Target(
        what="eight requests against one, blocks of 4", section="batch", dtype="float32", block=4,
        networks=frozenset(("150M",)), wanted=3,
    ),
    Target(
        what="bfloat16 weights against float32", section="dtype", dtype="bfloat16", networks=frozenset(("150M",)),
        wanted=1.4,
    ),
)  # fmt: skip
IMPORTS: Mapping[str, float] = MappingProxyType({"import diffulex_core": 0.3, "diffulex plugins list": 0.6})
"""Start of a fresh interpreter -> seconds that it may take."""
HOST_MS = 1.5
"""Milliseconds that planning, packing, applying decisions and page work may take in a step of 64 requests that fill
masks, which the goal was set for."""


def verdicts(report: Report, host: Mapping[str, Any] | None) -> Iterator[Verdict]:
    """Each target with each measurement of it; none for what was not measured.

    Args:
        host: what `benchmarks/host.py` wrote, in us; None without.
    """
    for target in TARGETS:
        for outcome in report.outcomes:
            last = outcome.contenders[-1]
            if target.fits(outcome, last):
                yield Verdict(
                    what=target.what, where=outcome.name, wanted=target.wanted, found=outcome.faster(last), unit="x",
                    at_least=True,
                )  # fmt: skip
    for name, most in IMPORTS.items():
        if name in report.imports:
            each = report.imports[name]
            found = Spread(median=each["median"], low=each["low"], high=each["high"])
            yield Verdict(what="start", where=name, wanted=most, found=found, unit=" s", at_least=False)
    for shape in host["shapes"] if host is not None else ():
        if shape["shape"]["kind"] != "filling":
            continue
        each = shape["this"]["wall"]["critical"]
        found = Spread(median=each["median"] / 1e3, low=each["low"] / 1e3, high=each["high"] / 1e3)
        where = f"64 requests, {shape['label']}"
        what = "host time of a step that fills masks"
        yield Verdict(what=what, where=where, wanted=HOST_MS, found=found, unit=" ms", at_least=False)
