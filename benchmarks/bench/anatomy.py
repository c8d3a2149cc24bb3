"""Where the time of a step goes: what the modules of each kind take themselves, in contenders that take turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

import attrs
from benchmarks.bench.cells import Cell, canvas_cell
from benchmarks.bench.child import Child, Contender
from benchmarks.bench.limits import weight_flops
from benchmarks.bench.networks import NETWORKS, prompts, write_network
from benchmarks.bench.turns import Spread, take_turns
from benchmarks.bench.work import Answer, Work
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

PRODUCTS, ATTENTION, NORMS, OUTSIDE = "products", "attention", "norms", "outside"
PARTS: Mapping[str, Sequence[str]] = MappingProxyType(
    {
        PRODUCTS: ("Linear", "RowLinear", "PackedLinear", "VocabHead", "FusedGates"),
        ATTENTION: ("SelfAttention", "LlamaAttention"),
        NORMS: ("RMSNorm", "LlamaRMSNorm"),
        "activations": ("GatedMLP", "LlamaMLP", "SiLUActivation", "SiLU"),
        "between": (
            "Decoder", "DecoderLayer", "Embedding", "LlamaForCausalLM", "LlamaModel", "LlamaDecoderLayer",
            "LlamaRotaryEmbedding",
        ),
    }
)  # fmt: skip
"""A step's parts, by the classes of the modules that do them. With the products goes an activation that they apply;
with attention rotating, and storing K/V; between them stand additions, the embedding and angles."""
NAMES = (*PARTS, OUTSIDE)
"""Of all parts; `OUTSIDE` is what no module does: choosing tokens, planning, whatever a loop does with logits."""


class SelfTimes:
    """Seconds that modules take themselves, without the modules that they call, by class. A context manager.

    Attributes:
        seconds: so far.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        """`now` tells the time in seconds."""
        self.seconds: dict[str, float] = {}
        self._now = now
        self._began: list[float] = []
        self._inner = [0.0]

    def __enter__(self) -> SelfTimes:
        with ExitStack() as hooks:
            hooks.enter_context(register_module_forward_pre_hook(self._enter))
            hooks.enter_context(register_module_forward_hook(self._leave, always_call=True))
            self._hooks = hooks.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.close()

    def _enter(self, _module: nn.Module, _inputs: object) -> None:
        self._inner.append(0.0)
        self._began.append(self._now())

    def _leave(self, module: nn.Module, _inputs: object, _output: object) -> None:
        whole = self._now() - self._began.pop()
        name = type(module).__name__
        self.seconds[name] = self.seconds.get(name, 0.0) + whole - self._inner.pop()
        self._inner[-1] += whole


def by_part(seconds: Mapping[str, float], whole: float) -> dict[str, float]:
    """Seconds of a run's parts from those of its modules' classes.

    Raises:
        KeyError: a class belongs to none.
    """
    part_of = {name: part for part, names in PARTS.items() for name in names}
    found = dict.fromkeys(NAMES, 0.0)
    for name, own in seconds.items():
        found[part_of[name]] += own
    return {**found, OUTSIDE: whole - sum(seconds.values())}


@attrs.define
class Dissected:
    """A contender that is taken apart in each of its runs."""

    name: str
    _contender: Contender

    def run(self) -> tuple[Answer, dict[str, float]]:
        """What it answers, and the seconds of its parts."""
        with SelfTimes() as times:
            began = time.perf_counter()
            answer = self._contender.run()
            whole = time.perf_counter() - began
        return answer, by_part(times.seconds, whole)


def take_apart(
    *, folder: str, network: str, entries: Sequence[tuple[str, str, Mapping[str, Any]]], work: Work, rounds: int
) -> dict[str, dict[str, Any]]:
    """Let contenders of one process take turns, and say where their steps' time goes.

    Args:
        entries: name, `module:Class` and keywords of each.
    Returns:
        For each name the parts' milliseconds in a step as spreads over the rounds, their sum as "whole", and "rate",
        the operations per second of its products.
    """
    shape, seats = NETWORKS[network], []
    for name, target, keywords in entries:
        module, _, kind = target.partition(":")
        contender: Contender = vars(import_module(module))[kind](folder=folder, config=shape.config, **keywords)
        contender.prepare(work, prompts(shape, length=work.prompt, count=work.batch))
        seats.append(Dissected(name, contender))
    kept = take_turns(seats, rounds=rounds, warmups=1, seconds=60, now=time.perf_counter)
    return {name: _summary(network, runs) for name, runs in kept.items()}


def _summary(network: str, runs: Sequence[tuple[Answer, Mapping[str, float]]]) -> dict[str, Any]:
    parts: dict[str, Any] = {
        part: attrs.asdict(Spread.of([1e3 * seconds[part] / answer.steps for answer, seconds in runs]))
        for part in NAMES
    }
    whole = Spread.of([1e3 * sum(seconds.values()) / answer.steps for answer, seconds in runs])
    rate = Spread.of([weight_flops(NETWORKS[network], answer) / seconds[PRODUCTS] for answer, seconds in runs])
    return {**parts, "whole": attrs.asdict(whole), "rate": attrs.asdict(rate)}


def anatomy_cells() -> list[Cell]:
    """What is taken apart: whole canvases in bfloat16, where least is left to be won."""
    return [canvas_cell(network, "bfloat16", prompt=64, output=256) for network in ("35M", "60M", "150M")]


def measure_anatomy(cell: Cell, *, folder: Path, rounds: int, threads: int) -> dict[str, Any]:
    """A cell, taken apart in a process of its own, as plain data.

    Args:
        folder: where checkpoints are written.
    Raises:
        ChildFailed: a contender raised.
    """
    [work] = {each.work for each in cell.entries}
    arguments = {
        "folder": str(write_network(NETWORKS[cell.network], folder)),
        "network": cell.network,
        "entries": [(each.name, each.target, each.arguments) for each in cell.entries],
        "work": work,
        "rounds": rounds,
    }
    child = Child(cell.name, "benchmarks.bench.anatomy:take_apart", arguments, threads=threads, cores=range(threads))
    try:
        return {"name": cell.name, "network": cell.network, "contenders": child.loaded}
    finally:
        child.close()
