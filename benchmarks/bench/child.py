"""A contender in a process of its own that is kept alive and does one run whenever it is asked.

A contender is a class with `prepare(work, prompts)`, which may load and warm whatever is not measured, and `run()`,
which is measured and returns an `Answer`.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any, Protocol

import attrs
from benchmarks.bench.memory import forget_peak, peak_rss
from benchmarks.bench.work import Answer, Work


class Contender(Protocol):
    """See the module."""

    def prepare(self, work: Work, prompts: Sequence[Sequence[int]]) -> None: ...

    def run(self) -> Answer: ...


@attrs.frozen(kw_only=True)
class Measured:
    """One run.

    Attributes:
        answer: what it gave.
        wall, cpu: seconds of the run: of the clock, and of all threads of the process, NaN where that is not known.
        peak_rss: bytes, the most since it was prepared, or that a process of its own had.
    """

    answer: Answer
    wall: float
    cpu: float
    peak_rss: int


class ChildFailed(RuntimeError):
    """A contender raised; holds its traceback."""


class Child:
    """The parent's end: a contender's name, and a process that runs it."""

    def __init__(
        self, name: str, target: str, arguments: Mapping[str, Any], *, threads: int, cores: Sequence[int]
    ) -> None:
        """
        Args:
            target: `module:Class` of the contender, imported in the child.
            arguments: keywords of the class.
            threads: of the child's torch, and of every library that reads the usual variables.
            cores: that it is pinned to.
        """
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, tuple(cores)), daemon=True)
        with _Environment(threads):
            self._process.start()
        theirs.close()
        self.loaded = self._call("load", target, dict(arguments))

    def prepare(self, work: Work, prompts: Sequence[Sequence[int]]) -> None:
        """Make it ready to `run` this work."""
        self._call("prepare", work, prompts)

    def run(self) -> Measured:
        """Do the work once, alone: the parent waits."""
        measured: Measured = self._call("run")
        return measured

    def close(self) -> None:
        """End the process."""
        if self._process.is_alive():
            self._connection.close()  # the child's loop ends at the end of its input
            self._process.join(timeout=10)
            if self._process.is_alive():
                self._process.terminate()
                self._process.join()

    def _call(self, what: str, *arguments: Any) -> Any:
        self._connection.send((what, arguments))
        try:
            failure, value = self._connection.recv()
        except EOFError:
            raise ChildFailed(f"{self.name} died in {what!r}.") from None
        if failure is not None:
            raise ChildFailed(f"{self.name} failed in {what!r}:\n{failure}")
        return value


def call_in_child(target: str, *, threads: int, cores: Sequence[int]) -> Any:
    """Call `module:function` in a fresh process, pinned like a contender, and return what it returns."""
    child = Child(target, target, {}, threads=threads, cores=cores)
    try:
        return child.loaded
    finally:
        child.close()


THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class _Environment:
    """Variables that a child inherits and libraries read as they are loaded; put back afterwards."""

    def __init__(self, threads: int) -> None:
        self._wanted = {name: str(threads) for name in THREAD_VARIABLES} | {"TOKENIZERS_PARALLELISM": "false"}

    def __enter__(self) -> None:
        self._before = {name: os.environ.get(name) for name in self._wanted}
        os.environ.update(self._wanted)

    def __exit__(self, *_: object) -> None:
        for name, value in self._before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _serve(connection: Connection, cores: tuple[int, ...]) -> None:
    """The child's loop: one request, one answer `(traceback or None, value)`."""
    if sys.platform == "linux":
        os.sched_setaffinity(0, cores)
    contender: Contender | None = None
    while True:
        try:
            what, arguments = connection.recv()
        except EOFError:
            return
        try:
            value = None
            if what == "load":
                target, keywords = arguments
                module, _, name = target.partition(":")
                made = vars(import_module(module))[name]
                if isinstance(made, type):
                    contender = made(**keywords)
                else:
                    value = made(**keywords)
            elif what == "prepare":
                _loaded(contender).prepare(*arguments)
                forget_peak()
            else:
                value = _measure(_loaded(contender))
        except Exception:  # noqa: BLE001, the process boundary: the parent raises it again
            connection.send((traceback.format_exc(), None))
        else:
            connection.send((None, value))


def _loaded(contender: Contender | None) -> Contender:
    if contender is None:
        raise RuntimeError("no contender was loaded")
    return contender


def _measure(contender: Contender) -> Measured:
    wall, cpu = time.perf_counter(), time.process_time()
    answer = contender.run()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    if answer.seconds is not None:
        wall, cpu = answer.seconds, math.nan
    return Measured(answer=answer, wall=wall, cpu=cpu, peak_rss=answer.peak_rss or peak_rss())
