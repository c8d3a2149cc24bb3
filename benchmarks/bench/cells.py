"""What is measured: cells of contenders that take turns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import attrs
from benchmarks.bench.work import Work

Tokens = Literal["equal", "compared", "counted"]
"""What must hold between the answers: equal token for token; of one length, and the share of equal tokens is reported
(bfloat16 rounds differently in two programs); of one length (other algorithms)."""

BLOCKS = "our engine, blocks"
CANVAS = "our engine, canvas"
AUTHORS = "authors' loop, transformers"

_TARGETS: Mapping[str, tuple[str, Mapping[str, Any]]] = MappingProxyType(
    {
        BLOCKS: ("benchmarks.bench.engine:Engine", {"way": "blocks"}),
        CANVAS: ("benchmarks.bench.engine:Engine", {"way": "canvas"}),
        AUTHORS: ("benchmarks.bench.authors:AuthorsLoop", {}),
    }
)


@attrs.frozen(kw_only=True)
class Entry:
    """A contender of a cell: its name there, the class that does the work, the class's keywords, and its work."""

    name: str
    target: str
    arguments: Mapping[str, Any]
    work: Work


@attrs.frozen(kw_only=True)
class Cell:
    """Contenders that take turns; `base` is the one that the others are compared with, the first."""

    name: str
    section: str
    network: str
    entries: tuple[Entry, ...]
    tokens: Tokens


SECTIONS: Mapping[str, str] = MappingProxyType(
    {
        "canvas": "The same algorithm: a whole canvas in every step",
        "blocks": "Block decoding against whole canvases, one position in each step of both",
        "threshold": "Deciding by a threshold",
        "batch": "Eight requests at once against one",
        "dtype": "bfloat16 weights against float32",
        "llamacpp": "Against llama.cpp: a whole canvas in every step",
    }
)
"""Headings, in the order of the page."""


def entry(kind: str, dtype: str, work: Work, *, name: str | None = None) -> Entry:
    """A contender of one of the kinds of this module."""
    target, arguments = _TARGETS[kind]
    return Entry(name=name or kind, target=target, arguments={**arguments, "dtype": dtype}, work=work)


def canvas_cell(network: str, dtype: str, *, prompt: int, output: int, batch: int = 1, steps: int = 8) -> Cell:
    """The authors' loop and our canvas: the same forwards over the same rows."""
    work = Work(prompt=prompt, output=output, batch=batch, steps=steps)
    return Cell(
        name=f"canvas-{network}-p{prompt}-o{output}-b{batch}-{dtype}",
        section="canvas",
        network=network,
        entries=(entry(AUTHORS, dtype, work), entry(CANVAS, dtype, work)),
        tokens="equal" if dtype == "float32" else "compared",
    )


def block_cell(
    network: str, dtype: str, *, prompt: int, output: int, batch: int = 1, sampled: int | None = None
) -> Cell:
    """The authors' loop and our blocks, as many steps as there are tokens."""
    work = Work(prompt=prompt, output=output, batch=batch, steps=output)
    return Cell(
        name=f"blocks-{network}-p{prompt}-o{output}-b{batch}-{dtype}",
        section="blocks",
        network=network,
        entries=(entry(AUTHORS, dtype, attrs.evolve(work, sampled_steps=sampled)), entry(BLOCKS, dtype, work)),
        tokens="counted",
    )


def threshold_cell(network: str, dtype: str, *, prompt: int, output: int, threshold: float) -> Cell:
    """The loop with Fast-dLLM's rule, our canvas with the same rule, and our blocks."""
    work = Work(prompt=prompt, output=output, batch=1, steps=output, threshold=threshold)
    return Cell(
        name=f"threshold-{network}-p{prompt}-o{output}-b1-{dtype}",
        section="threshold",
        network=network,
        entries=tuple(entry(kind, dtype, work) for kind in (AUTHORS, CANVAS, BLOCKS)),
        tokens="counted",
    )


def batch_cell(network: str, dtype: str, *, block: int, prompt: int = 64, output: int = 64) -> Cell:
    """One request, and eight at once."""
    work = Work(prompt=prompt, output=output, batch=1, steps=output, block_length=block)
    entries = (
        entry(BLOCKS, dtype, attrs.evolve(work, batch=batch), name=f"batch {batch}, blocks of {block}")
        for batch in (1, 8)
    )
    name = f"batch-{network}-block{block}-{dtype}"
    return Cell(name=name, section="batch", network=network, entries=tuple(entries), tokens="counted")


def dtype_cell(network: str, kind: str, *, prompt: int = 64, output: int = 64, steps: int = 64) -> Cell:
    """The same in two precisions."""
    work = Work(prompt=prompt, output=output, batch=1, steps=steps)
    entries = tuple(entry(kind, dtype, work, name=f"{kind}, {dtype}") for dtype in ("float32", "bfloat16"))
    way = "blocks" if kind == BLOCKS else "canvas"
    return Cell(name=f"dtype-{network}-{way}", section="dtype", network=network, entries=entries, tokens="compared")


def llamacpp_cells(cli: str, *, smoke: bool = False) -> Iterator[Cell]:
    """llama.cpp and our canvas: the same rows through the body in as many steps.

    The first contender is llama.cpp's forwards alone, so that what its search costs is no part of the ratio; ours is
    whole. A cell of a single step decides every position by its most probable token: there the tokens show whether both
    have the same weights.
    """
    for network in ("smoke",) if smoke else ("60M", "150M"):
        for dtype in ("float32", "bfloat16"):
            for steps in (1, 4 if smoke else 8):
                work = Work(prompt=64, output=192, batch=1, steps=steps, block_length=192 if steps == 1 else 32)
                if smoke:
                    work = attrs.evolve(work, prompt=32, output=32, block_length=32 if steps == 1 else 8)
                theirs = [
                    Entry(
                        name=f"llama.cpp, {part}",
                        target="benchmarks.bench.llamacpp:LlamaCpp",
                        arguments={"dtype": dtype, "cli": cli, "part": part},
                        work=work,
                    )
                    for part in ("forwards", "whole")
                ]
                yield Cell(
                    name=f"llamacpp-{network}-s{steps}-{dtype}",
                    section="llamacpp",
                    network=network,
                    entries=(*theirs, entry(CANVAS, dtype, work)),
                    tokens="compared" if steps == 1 else "counted",
                )


def default_cells() -> Iterator[Cell]:
    """What `python -m benchmarks.bench` measures."""
    for dtype in ("float32", "bfloat16"):
        yield canvas_cell("35M", dtype, prompt=64, output=256)
        yield canvas_cell("60M", dtype, prompt=64, output=256)
        yield canvas_cell("150M", dtype, prompt=64, output=256)
    yield canvas_cell("35M", "float32", prompt=512, output=256)
    yield canvas_cell("35M", "float32", prompt=64, output=64, batch=8, steps=4)
    yield block_cell("35M", "float32", prompt=64, output=64)
    yield block_cell("35M", "float32", prompt=64, output=256, sampled=16)
    yield block_cell("35M", "float32", prompt=512, output=64, sampled=16)
    yield block_cell("35M", "float32", prompt=512, output=256, sampled=16)
    yield block_cell("35M", "bfloat16", prompt=64, output=256, sampled=16)
    yield block_cell("35M", "float32", prompt=64, output=64, batch=8, sampled=8)
    yield block_cell("150M", "float32", prompt=64, output=256, sampled=8)
    yield block_cell("150M", "float32", prompt=512, output=256, sampled=4)
    yield block_cell("150M", "float32", prompt=64, output=64, batch=8, sampled=4)
    yield threshold_cell("35M", "float32", prompt=64, output=64, threshold=THRESHOLD)
    for block in (4, 32):
        yield batch_cell("150M", "float32", block=block)
    yield batch_cell("35M", "float32", block=4)
    yield dtype_cell("150M", BLOCKS)
    yield dtype_cell("150M", CANVAS, output=256, steps=8)


def smoke_cells() -> Iterator[Cell]:
    """All kinds of cells on a network that takes no time."""
    yield canvas_cell("smoke", "float32", prompt=32, output=64, steps=4)
    yield block_cell("smoke", "float32", prompt=32, output=64, sampled=4)
    yield threshold_cell("smoke", "float32", prompt=32, output=64, threshold=THRESHOLD)
    yield batch_cell("smoke", "float32", block=4, output=16)


THRESHOLD = 0.5
"""Confidence at which the random networks decide a few positions in a step."""


def choose(cells: Sequence[Cell], patterns: Sequence[str]) -> list[Cell]:
    """Those whose name holds one of the patterns; all without any.

    Raises:
        ValueError: a pattern fits no cell.
    """
    for pattern in patterns:
        if not any(pattern in cell.name for cell in cells):
            raise ValueError(f"No cell's name holds {pattern!r}; they are {', '.join(cell.name for cell in cells)}.")
    return [cell for cell in cells if not patterns or any(pattern in cell.name for pattern in patterns)]


def unsampled(cell: Cell) -> Cell:
    """The cell with every step of every contender."""
    whole = (attrs.evolve(each, work=attrs.evolve(each.work, sampled_steps=None)) for each in cell.entries)
    return attrs.evolve(cell, entries=tuple(whole))
