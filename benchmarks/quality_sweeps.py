"""What `benchmarks.quality` runs: for each model its ways of decoding, and the knob that each sweep turns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import attrs

from diffulex_tiny.problems import Task

Place = Literal["engine", "request", "sparse"]
Settings = Mapping[str, Any]

LENGTHS: Mapping[Task, int] = {"two_step": 32, "long": 128}
"""Room for an answer, and length of a canvas."""
ACCEPT = (0.5, 0.7, 0.9, 0.95, 0.99, 0.999, 0.9999)
HARD = 0.999
"""Threshold at which the other knobs of running blocks are turned: below it the tiny models decide a block at once."""
SHORT_AND_LONG: tuple[Task, ...] = ("two_step", "long")


@attrs.frozen(kw_only=True)
class Sweep:
    """One way of decoding with one knob turned.

    Attributes:
        model: name of a checkpoint of diffulex-tiny.
        tasks: problems that the model was trained for.
        way: name of the curve.
        knob, values: what is turned, and to what.
        place: where knobs and settings of that name go: an engine, a request, or a request's sparse cache.
        engine, request: what stays as it is.
        revises: whether decided tokens may be replaced, so that edits are counted.
    """

    model: str
    tasks: tuple[Task, ...]
    way: str
    knob: str
    values: tuple[Any, ...]
    engine: Settings
    request: Settings = attrs.field(factory=dict)
    place: Place = "engine"
    revises: bool = False


@attrs.frozen(kw_only=True)
class Trial:
    """One point of a sweep: everything that an engine and its requests are given."""

    sweep: Sweep
    task: Task
    value: Any

    @property
    def engine(self) -> dict[str, Any]:
        """Options of the engine. Pages hold the longest blocks, and no trial profits from the one before it."""
        turned = {self.sweep.knob: self.value} if self.sweep.place == "engine" else {}
        rest = {"page_size": 32, "num_pages": 512, "max_num_batched_tokens": 16384, "enable_prefix_caching": False}
        return {**rest, **self.sweep.engine, **turned}

    @property
    def request(self) -> dict[str, Any]:
        """Sampling parameters."""
        turned: dict[str, Any] = {self.sweep.knob: self.value} if self.sweep.place == "request" else {}
        if self.sweep.place == "sparse":
            turned = {"sparse": {self.sweep.knob: self.value}}
        return {"temperature": 0.0, "max_tokens": LENGTHS[self.task], **self.sweep.request, **turned}

    @property
    def settings(self) -> dict[str, Any]:
        """All of it in one, for records."""
        return {**self.engine, **self.request}


def trials(sweep: Sweep, *, quick: bool = False) -> Iterator[Trial]:
    """Every point of a sweep; `quick`: the first, the middle and the last value only."""
    values = sweep.values
    if quick:
        values = tuple(dict.fromkeys((values[0], values[len(values) // 2], values[-1])))
    for task in sweep.tasks:
        for value in values:
            yield Trial(sweep=sweep, task=task, value=value)


def blocks(model: str, tasks: tuple[Task, ...], strategy: str) -> list[Sweep]:
    """Running blocks: one of them and several over accept thresholds, then each knob by itself."""
    several = {"decoding_strategy": strategy, "block_size": 4, "buffer_size": 4}
    one = {**several, "buffer_size": 1}
    hard = {**several, "accept_threshold": HARD}

    def sweep(way: str, engine: Settings, knob: str, *values: float) -> Sweep:
        return Sweep(model=model, tasks=tasks, way=way, knob=knob, values=values, engine=engine)

    return [
        sweep(f"{strategy}, one block", one, "accept_threshold", *ACCEPT),
        sweep(strategy, several, "accept_threshold", *ACCEPT),
        sweep(strategy, hard, "buffer_size", 2, 3, 4, 6, 8),
        sweep(strategy, hard, "semi_complete_threshold", 0.25, 0.5, 0.75, 0.9, 1.0),
        sweep(strategy, hard, "add_block_threshold", 0.0, 0.1, 0.25, 0.5, 0.75, 1.0),
        sweep(f"{strategy}, longer blocks", {**several, "accept_threshold": 0.9}, "block_size", 4, 8, 16, 32),
    ]


def revising(model: str, tasks: tuple[Task, ...]) -> list[Sweep]:
    """Edit sampling and DMax, whose blocks may change until they are stored, beside what fills masks only.

    In blocks of 4 a model that was trained for it hardly errs; in blocks of 32, of which most is decided at once, it
    does, and there is something to repair.
    """
    fill = {"decoding_strategy": "multi_bd"}
    edit = {**fill, "sampling_mode": "edit"}
    dmax = {"decoding_strategy": "dmax"}
    small = {"block_size": 4, "buffer_size": 4}
    one, two, several = ({"block_size": 32, "buffer_size": count} for count in (1, 2, 4))
    usual = {**several, "accept_threshold": 0.9}

    def sweep(way: str, engine: Settings, knob: str, *values: float) -> Sweep:
        return Sweep(
            model=model,
            tasks=tasks,
            way=way,
            knob=knob,
            values=values,
            engine=engine,
            revises=way.startswith(("edit", "dmax")),
        )

    sweeps = [sweep("edit, one block", {**edit, **small, "buffer_size": 1}, "accept_threshold", *ACCEPT)]
    for name, kind in {"edit": edit, "dmax": dmax}.items():
        sweeps += [
            sweep(name, {**kind, **small}, "accept_threshold", *ACCEPT),
            sweep(name, {**kind, **small, "accept_threshold": HARD}, "buffer_size", 1, 2, 4, 8),
            sweep(f"{name}, longer blocks", {**kind, **usual}, "block_size", 4, 8, 16, 32),
            sweep(f"{name}, longer blocks", {**kind, **usual}, "buffer_size", 1, 2, 3, 4),
        ]
    for name, kind in {"multi_bd": fill, "edit": edit, "dmax": dmax}.items():
        sweeps += [
            sweep(f"{name}, one block of 32", {**kind, **one}, "accept_threshold", *ACCEPT),
            sweep(f"{name}, two blocks of 32", {**kind, **two}, "accept_threshold", *ACCEPT),
        ]
    alone = {**edit, **one, "accept_threshold": 0.9}
    return [*sweeps, sweep("edit, one block of 32", alone, "edit_threshold", 0.0, 0.3, 0.5, 0.7, 0.9, 0.99)]


def canvas(
    model: str, tasks: Sequence[Task], strategy: str, quota: Settings, *, guided: Sequence[Task] = SHORT_AND_LONG
) -> list[Sweep]:
    """A canvas over steps, guidance and accept thresholds.

    Args:
        quota: chooses positions when steps are given.
        guided: tasks on which guidance is tried, which takes two canvases in every step.
    """
    return [each for task in tasks for each in _canvas(model, task, strategy, quota, guided=task in guided)]


def _canvas(model: str, task: Task, strategy: str, quota: Settings, *, guided: bool) -> Iterator[Sweep]:
    length = LENGTHS[task]
    fixed = {"gen_length": length, **quota}
    certain = {**fixed, "alg": "confidence_threshold"}
    # llada_canvas plans no steps then; under dream_canvas a threshold chooses among the positions that are due.
    few = {**certain, "steps": length // 8}

    def sweep(kind: str, request: Settings, place: Place, knob: str, *values: float, **engine: float) -> Sweep:
        return Sweep(
            model=model,
            tasks=(task,),
            way=f"{strategy}{kind}",
            knob=knob,
            values=values,
            engine={"decoding_strategy": strategy, **engine},
            request=request,
            place=place,
        )

    yield sweep("", fixed, "request", "steps", length // 8, length // 4, length // 2, length)
    if guided:
        yield sweep(", guided", {**fixed, "steps": length}, "request", "cfg_scale", 0.25, 0.5, 1.0)
    yield sweep(", threshold", few, "engine", "accept_threshold", *ACCEPT)
    if "block_length" in quota:
        lengths = (each for each in (4, 8, 16, 32, 64, 128) if each <= length)
        yield sweep(", threshold", certain, "request", "block_length", *lengths, accept_threshold=0.9)
    else:
        steps = (length // each for each in (32, 16, 8, 4, 2, 1))
        yield sweep(", threshold", certain, "request", "steps", *steps, accept_threshold=0.9)


def sparse(model: str, tasks: Sequence[Task]) -> list[Sweep]:
    """The sparse cache on a canvas in blocks of 8, a position in each step."""
    return [
        Sweep(
            model=model,
            tasks=(task,),
            way="llada_canvas, sparse cache",
            knob="retention_ratio",
            values=(0.3, 0.5, 0.7, 0.85, 1.0),
            engine={"decoding_strategy": "llada_canvas"},
            request={"gen_length": LENGTHS[task], "steps": LENGTHS[task], "block_length": 8},
            place="sparse",
        )
        for task in tasks
    ]


def noise(model: str, tasks: tuple[Task, ...]) -> list[Sweep]:
    """DiffusionGemma's canvases of noise: when one is accepted, what is kept in a step, and how many steps."""
    published = {"confidence_threshold": 0.005, "entropy_bound": 0.1, "max_denoising_steps": 48}
    recommended = {**published, "confidence_threshold": 0.05}

    def sweep(usual: Settings, knob: str, *values: float) -> Sweep:
        return Sweep(
            model=model,
            tasks=tasks,
            way="diffusion_gemma",
            knob=knob,
            values=values,
            engine={"decoding_strategy": "diffusion_gemma", **usual},
        )

    return [
        sweep(published, "confidence_threshold", 0.001, 0.005, 0.02, 0.05, 0.2),
        sweep(recommended, "entropy_bound", 0.05, 0.1, 0.3, 1.0, 3.0),
        sweep(published, "max_denoising_steps", 8, 16, 32, 48),
    ]


LLADA_QUOTA: Settings = {"block_length": 8}
DREAM_QUOTA: Settings = {"alg": "entropy"}

SWEEPS: tuple[Sweep, ...] = (
    *blocks("llada", ("two_step",), "d2f"),
    *blocks("llada", ("two_step",), "multi_bd"),
    *canvas("llada", ("two_step",), "llada_canvas", LLADA_QUOTA),
    *sparse("llada", ("two_step",)),
    *canvas("llada", ("two_step",), "dream_canvas", DREAM_QUOTA),
    *blocks("llada2", SHORT_AND_LONG, "multi_bd"),
    *revising("llada2", SHORT_AND_LONG),
    *blocks("dream", SHORT_AND_LONG, "d2f"),
    *blocks("dream", SHORT_AND_LONG, "multi_bd"),
    *canvas("dream", SHORT_AND_LONG, "dream_canvas", DREAM_QUOTA),
    *canvas("dream", SHORT_AND_LONG, "llada_canvas", LLADA_QUOTA, guided=("two_step",)),
    *sparse("dream", SHORT_AND_LONG),
    *noise("gemma", SHORT_AND_LONG),
)
"""Everything, in the order in which it runs."""
MODELS: tuple[str, ...] = tuple(dict.fromkeys(sweep.model for sweep in SWEEPS))
