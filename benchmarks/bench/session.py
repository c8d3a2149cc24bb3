"""Running cells: children that are kept alive, turns, checks, and what they add up to."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import attrs
import psutil
from benchmarks.bench.cells import Cell, Entry
from benchmarks.bench.child import Child, Measured
from benchmarks.bench.limits import fraction, spent
from benchmarks.bench.machine import check_idle, read_clock
from benchmarks.bench.networks import NETWORKS, prompts, write_network
from benchmarks.bench.results import Contended, Outcome
from benchmarks.bench.turns import DifferentTokens, Runs, agreement, check_same, take_turns
from benchmarks.bench.work import Work


@attrs.frozen(kw_only=True)
class Settings:
    """How cells are run.

    Attributes:
        threads: of each contender; it is pinned to as many cores.
        rounds, warmups: see `take_turns`.
        seconds: after so many no further round of a cell begins.
        busy_ok: measure on a busy machine, too.
        folder: where checkpoints are written.
    """

    threads: int
    rounds: int
    warmups: int
    seconds: float
    busy_ok: bool
    folder: Path


@attrs.define(eq=False)
class Seat:
    """A contender's place in a cell: makes its child ready, then lets it run."""

    entry: Entry
    child: Child
    prompts: Sequence[Sequence[int]]
    _ready: bool = False

    @property
    def name(self) -> str:
        return self.entry.name

    def run(self) -> Measured:
        if not self._ready:
            self.child.prepare(self.entry.work, self.prompts)
            self._ready = True
        return self.child.run()


@attrs.frozen(kw_only=True)
class Watched:
    """What came out of turns, and what else ran meanwhile.

    Attributes:
        kept: the counted rounds of each contender.
        others: share of the machine's processor time that other processes took.
        citable: whether that was little enough.
    """

    kept: Mapping[str, Sequence[Measured]]
    others: float
    citable: bool


def watched(contenders: Sequence[Runs[Measured]], settings: Settings) -> Watched:
    """Let contenders take turns.

    Raises:
        BusyMachine: other processes ran meanwhile.
        ChildFailed: a contender raised.
    """
    before = read_clock(time.perf_counter)
    kept = take_turns(
        contenders,
        rounds=settings.rounds,
        warmups=settings.warmups,
        seconds=settings.seconds,
        now=time.perf_counter,
    )
    others = before.others_until(read_clock(time.perf_counter), psutil.cpu_count() or 1)
    return Watched(kept=kept, others=others, citable=check_idle(others, busy_ok=settings.busy_ok))


def watched_ways(
    ways: Mapping[str, tuple[str, Mapping[str, Any]]],
    work: Work,
    prompts: Sequence[Sequence[int]],
    settings: Settings,
) -> Watched:
    """Let children that are started for it do the same work in turns; `ways`: name -> target and its arguments.

    Raises: what `watched` raises.
    """
    with ExitStack() as stack:
        children = []
        for name, (target, arguments) in ways.items():
            child = Child(name, target, arguments, threads=settings.threads, cores=range(settings.threads))
            stack.callback(child.close)
            child.prepare(work, prompts)
            children.append(child)
        return watched(children, settings)


class Session:
    """Runs cells one after the other; children live as long as their network's cells. A context manager."""

    def __init__(self, settings: Settings, limits: Mapping[str, Any] | None) -> None:
        self._settings, self._limits = settings, limits
        self._children: dict[object, Child] = {}
        self._network = ""

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.dismiss()

    def run(self, cell: Cell) -> Outcome:
        """Measure a cell.

        Raises:
            BusyMachine: other processes ran while it was measured.
            DifferentTokens: contenders did not do the same work.
            ChildFailed: a contender raised.
        """
        network = NETWORKS[cell.network]
        if cell.network != self._network:
            self.dismiss()
            self._network = cell.network
        seats = [
            Seat(each, child, prompts(network, length=each.work.prompt, count=each.work.batch))
            for each, child in zip(cell.entries, self._seated(cell), strict=True)
        ]
        run = watched(seats, self._settings)
        return Outcome(
            name=cell.name,
            section=cell.section,
            network=cell.network,
            contenders=[self._contended(cell, each, run.kept[each.name]) for each in cell.entries],
            others=run.others,
            citable=run.citable,
            agreement=compare(cell, run.kept),
        )

    def _seated(self, cell: Cell) -> Iterator[Child]:
        """The child of each entry: one that ran the same contender in an earlier cell, or a new one."""
        network, settings = NETWORKS[cell.network], self._settings
        folder = write_network(network, settings.folder)
        taken = set[object]()
        for each in cell.entries:
            key: object = (each.target, *sorted(each.arguments.items()))
            while key in taken:
                key = (key, "another")
            taken.add(key)
            if key not in self._children:
                self._children[key] = Child(
                    each.name,
                    each.target,
                    {"folder": str(folder), "config": network.config, **each.arguments},
                    threads=settings.threads,
                    cores=range(settings.threads),
                )
            yield self._children[key]

    def _contended(self, cell: Cell, entry: Entry, rounds: Sequence[Measured]) -> Contended:
        answer, dtype = rounds[0].answer, str(entry.arguments["dtype"])
        wall = [each.wall for each in rounds]
        reached = None
        if self._limits is not None and answer.rows:
            needed = spent(NETWORKS[cell.network], answer, entry.work, dtype)
            reached = fraction(needed, sorted(wall)[len(wall) // 2], dict(self._limits), dtype)
        return Contended(
            name=entry.name,
            dtype=dtype,
            work=entry.work,
            wall=wall,
            cpu=[each.cpu for each in rounds],
            tokens=entry.work.output * entry.work.batch,
            steps=answer.steps,
            planned_steps=answer.planned_steps,
            rows=answer.rows,
            head_rows=answer.head_rows,
            first_block=[each.answer.first_block for each in rounds if each.answer.first_block is not None],
            outside=[each.answer.outside for each in rounds if each.answer.outside is not None],
            peak_rss=max(each.peak_rss for each in rounds),
            fraction=reached,
        )

    def dismiss(self) -> None:
        """End all children; the next cell starts its own."""
        with ExitStack() as stack:
            for child in self._children.values():
                stack.callback(child.close)
            self._children = {}


def compare(cell: Cell, kept: Mapping[str, Sequence[Measured]]) -> float | None:
    """Check that all contenders did the same work, and that each did it in every round.

    Returns:
        The share of positions at which all agree; None where they need not.
    Raises:
        DifferentTokens: they did not.
    """
    for name, rounds in kept.items():
        check_same({f"{name}, round {index + 1}": each.answer.tokens for index, each in enumerate(rounds)})
    answers = {name: rounds[0].answer.tokens for name, rounds in kept.items()}
    if cell.tokens == "equal":
        check_same(answers)
        return 1.0
    if cell.tokens == "compared":
        return agreement(answers)
    for each in cell.entries:
        lengths = [*map(len, answers[each.name])]
        if lengths != [each.work.output] * each.work.batch:
            raise DifferentTokens(f"{each.name} gave {lengths} tokens in {cell.name}, not {each.work.output} each.")
    return None
