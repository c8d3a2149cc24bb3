"""Paged attention problems: cases that a backend accepts, sequences in scattered pages, and what they hold."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from itertools import product

import attrs
import torch
from hypothesis import strategies as st
from torch import Tensor

from diffulex_core.attention.case import AttentionCase
from diffulex_core.protocols import AttentionBackend
from diffulex_core.testing.check import CheckFailed
from diffulex_core.testing.subjects import AttentionSubject
from diffulex_core.types import AttentionBatch, RowRun

HEADS = ((1, 1), (2, 2), (4, 1), (4, 2), (6, 2), (6, 3), (21, 3), (40, 8))
HEAD_DIMS = (5, 8, 16, 64, 128, 256)
PAGE_SIZES = (1, 4, 8, 16, 32)
BLOCK_SIZES = (1, 4, 32)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WINDOWS: tuple[tuple[int | None, ...], ...] = ((None,), (3,), (None, 6))


def grid(device_type: str) -> list[AttentionCase]:
    """Cases of many shapes, each axis with each other one."""
    return [
        AttentionCase(
            device_type=device_type,
            dtype=dtype,
            head_dim=head_dim,
            num_heads=heads,
            num_kv_heads=kv_heads,
            page_size=page_size,
            block_size=block_size,
            windows=windows,
        )
        for (heads, kv_heads), head_dim, page_size, block_size, dtype, windows in product(
            HEADS, HEAD_DIMS, PAGE_SIZES, BLOCK_SIZES, DTYPES, WINDOWS
        )
    ]


@functools.lru_cache(maxsize=8)
def served(subject: AttentionSubject) -> tuple[AttentionCase, ...]:
    """The cases of the grid that the backend accepts, on the CPU if it accepts any there.

    Every check asks for them, to know whether it says anything, and a probe may look for packages in each of thousands.
    """
    for device_type in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        accepted = tuple(case for case in grid(device_type) if not subject.probe(case))
        if accepted:
            return accepted
    return ()


@attrs.frozen(kw_only=True, eq=False)
class Stretch:
    """Rows of one sequence.

    Attributes:
        name: contents are drawn by it, so that they are the same wherever the sequence stands.
        key_start, key_end: interval of each row.
        slots: that hold something.
        table: physical page of each logical one.
    """

    name: int
    key_start: tuple[int, ...]
    key_end: tuple[int, ...]
    slots: int
    table: tuple[int, ...]


@attrs.frozen(kw_only=True, eq=False)
class Problem:
    """One call of a backend.

    Attributes:
        case: shapes and types.
        stretches: the sequences, in the order of their rows.
        padding: rows behind them that see nothing.
        num_pages: physical pages; some belong to nobody.
        seed: of all contents.
        scale: factor on scores.
        fill: what slots hold that no sequence has filled.
    """

    case: AttentionCase
    stretches: tuple[Stretch, ...]
    padding: int = 0
    num_pages: int
    seed: int
    scale: float
    fill: float = 0.0

    @property
    def device(self) -> torch.device:
        return torch.device(self.case.device_type)

    def drawn(self, stretch: Stretch, what: int, *shape: int) -> Tensor:
        """Normally distributed numbers that belong to a sequence."""
        generator = torch.Generator().manual_seed(self.seed * 1000 + stretch.name * 10 + what)
        return torch.randn(*shape, generator=generator)

    @property
    def query(self) -> Tensor:
        """[rows, heads, head_dim], a part of a wider tensor, as projections give it."""
        case, size = self.case, 2 / (math.sqrt(self.case.head_dim) * self.scale)
        rows = [self.drawn(each, 0, len(each.key_end), case.num_heads, case.head_dim) for each in self.stretches]
        rows.append(torch.ones(self.padding, case.num_heads, case.head_dim))
        wide = torch.cat((torch.cat(rows) * size, torch.zeros(sum(map(len, rows)), 2, case.head_dim)), dim=1)
        return wide.to(case.dtype).to(self.device)[:, : case.num_heads]

    def pages(self, what: int) -> Tensor:
        """[pages, page_size, kv_heads, head_dim]: 1 = keys, 2 = values."""
        case = self.case
        store = torch.full((self.num_pages, case.page_size, case.num_kv_heads, case.head_dim), self.fill)
        for each in self.stretches:
            at = torch.arange(each.slots)
            pages = torch.tensor(each.table, dtype=torch.int64)[at // case.page_size]
            store[pages, at % case.page_size] = self.drawn(each, what, each.slots, case.num_kv_heads, case.head_dim)
        return store.to(case.dtype).to(self.device)

    @property
    def batch(self) -> AttentionBatch:
        """The intervals as tensors and as runs."""
        starts, ends, owners, runs = list[int](), list[int](), list[int](), list[RowRun]()
        for index, each in enumerate(self.stretches):
            for first, end in zip(each.key_start, each.key_end, strict=True):
                row = len(ends)
                if runs and (runs[-1].sequence, runs[-1].key_start, runs[-1].key_end) == (index, first, end):
                    runs[-1] = attrs.evolve(runs[-1], row_end=row + 1)
                else:
                    runs.append(RowRun(row_start=row, row_end=row + 1, sequence=index, key_start=first, key_end=end))
                starts, ends, owners = [*starts, first], [*ends, end], [*owners, index]
        none = [0] * self.padding
        width = max(len(each.table) for each in self.stretches)
        tables = [[*each.table, *[-1] * (width - len(each.table))] for each in self.stretches]
        return AttentionBatch(
            key_start=torch.tensor(starts + none, device=self.device),
            key_end=torch.tensor(ends + none, device=self.device),
            row_sequence=torch.tensor(owners + none, device=self.device),
            page_tables=torch.tensor(tables, device=self.device),
            page_size=self.case.page_size,
            runs=tuple(runs),
        )

    def attend(self, backend: AttentionBackend) -> Tensor:
        """What the backend returns, once it has the right shape and dtype; on the CPU."""
        query = self.query
        with torch.inference_mode():
            out = backend.attend(query, self.pages(1), self.pages(2), self.batch, self.scale)
        if out.shape != query.shape or out.dtype != query.dtype:
            raise CheckFailed(
                f"the output is {tuple(out.shape)} {out.dtype}, the query {tuple(query.shape)} {query.dtype}: they are "
                f"alike. {self}"
            )
        return out.cpu()

    def __str__(self) -> str:
        case = self.case
        windows = ", ".join(map(str, case.windows))
        intervals = [list(zip(each.key_start, each.key_end, strict=True)) for each in self.stretches]
        return (
            f"(heads {case.num_heads} over {case.num_kv_heads}, head_dim {case.head_dim}, {case.dtype}, page size "
            f"{case.page_size}, windows {windows}, scale {self.scale:.3g}; key intervals by sequence: {intervals}, "
            f"padding rows: {self.padding})"
        )


@st.composite
def intervals(draw: st.DrawFn, case: AttentionCase) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Starts, ends and filled slots of some rows: of blocks, causal, of a canvas, of sliding windows, any, or none."""
    first, count = draw(st.integers(0, 40)), draw(st.integers(1, 9))
    total = first + count
    positions = range(first, total)
    kind = draw(st.sampled_from(["blocks", "causal", "whole", "any", "some empty"]))
    match kind:
        case "blocks":
            ends = [min((at // case.block_size + 1) * case.block_size, total) for at in positions]
        case "causal":
            ends = [at + 1 for at in positions]
        case "whole":
            ends = [total for _ in positions]
        case _:
            ends = [draw(st.integers(1, total)) for _ in positions]
    width = draw(st.sampled_from(case.windows))
    starts = [0 if width is None else max(0, min(at - width + 1, end)) for at, end in zip(positions, ends, strict=True)]
    if width is not None and draw(st.booleans()):
        starts = [starts[0] if starts[0] <= end else end for end in ends]
    if kind == "some empty":
        gone = [draw(st.booleans()) for _ in positions]
        starts = [0 if empty else start for start, empty in zip(starts, gone, strict=True)]
        ends = [0 if empty else end for end, empty in zip(ends, gone, strict=True)]
    return tuple(starts), tuple(ends), total


@st.composite
def problems(draw: st.DrawFn, cases: Sequence[AttentionCase], /) -> Problem:
    """Problems of one to four sequences in scattered pages; the last page belongs to nobody."""
    case = draw(st.sampled_from(cases))
    laid = [draw(intervals(case)) for _ in range(draw(st.integers(1, 4)))]
    needed = [-(-slots // case.page_size) for _, _, slots in laid]
    num_pages = sum(needed) + draw(st.integers(1, 3))
    free = draw(st.permutations(range(num_pages - 1)))
    stretches, begin = [], 0
    for name, ((starts, ends, slots), pages) in enumerate(zip(laid, needed, strict=True)):
        table = tuple(free[begin : begin + pages])
        begin += pages
        stretches.append(Stretch(name=name, key_start=starts, key_end=ends, slots=slots, table=table))
    return Problem(
        case=case,
        stretches=tuple(stretches),
        padding=draw(st.sampled_from([0, 0, 3])),
        num_pages=num_pages,
        seed=draw(st.integers(0, 9999)),
        scale=draw(st.sampled_from([case.head_dim**-0.5, 1.0, 0.3])),
    )
