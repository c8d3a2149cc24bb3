"""Causal rows on the CPU: tiles of them are attention, and a row's bits are those that it has among any others."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import attrs
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from diffulex_core.attention import staircase
from diffulex_core.attention.cpu import TorchCPU
from diffulex_core.attention.reference import TorchReference
from diffulex_core.attention.staircase import TILE, tiles
from diffulex_core.types import RowRun
from tests.core.forward import Rows, attention_batch

PAGE = 8
LONGEST = 3 * TILE


@attrs.frozen(kw_only=True)
class Causal:
    """A sequence of 3 tiles in pages that do not follow one another; positions `[start, end)` of it are fed."""

    window: int | None
    heads: int
    kv_heads: int
    dtype: torch.dtype = torch.float32

    @property
    def table(self) -> list[int]:
        return [2 * page + 1 for page in range(LONGEST // PAGE)]

    def rows(self, start: int, end: int) -> Rows:
        first = [0 if self.window is None else max(0, at - self.window + 1) for at in range(start, end)]
        ends = [at + 1 for at in range(start, end)]
        return Rows(tokens=[0] * (end - start), start=start, key_start=first, key_end=ends, table=self.table)

    def drawn(self, seed: int, heads: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(LONGEST, heads, 16, generator=generator).to(self.dtype)

    def paged(self, seed: int, upto: int = LONGEST) -> Tensor:
        """Keys or values of all slots below `upto`; NaN behind them, and in pages of others."""
        pages = torch.full((2 * LONGEST // PAGE, PAGE, self.kv_heads, 16), torch.nan, dtype=self.dtype)
        at = torch.arange(upto)
        pages[torch.tensor(self.table)[at // PAGE], at % PAGE] = self.drawn(seed, self.kv_heads)[:upto]
        return pages

    def attend(self, start: int, end: int, backend: TorchCPU | TorchReference | None = None) -> Tensor:
        batch = attention_batch([self.rows(start, end)], PAGE)
        backend = TorchCPU() if backend is None else backend
        query = self.drawn(1, self.heads)[start:end]
        return backend.attend(query, self.paged(2, end), self.paged(3, end), batch, 0.3)


windows = st.sampled_from([None, 1, 2, 5, TILE - 1, TILE, TILE + 1, 2 * TILE + 3])
shapes = st.sampled_from([(1, 1), (4, 4), (6, 2), (4, 1)])


@settings(max_examples=40, deadline=None)
@given(window=windows, shape=shapes, start=st.integers(0, LONGEST - 1), count=st.integers(1, LONGEST))
def test_causal_rows_attend_as_the_reference_says(
    window: int | None, shape: tuple[int, int], start: int, count: int
) -> None:
    causal = Causal(window=window, heads=shape[0], kv_heads=shape[1])
    end = min(start + count, LONGEST)
    found, wanted = causal.attend(start, end), causal.attend(start, end, TorchReference())
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(window=windows, shape=shapes, cuts=st.sets(st.integers(2, LONGEST - 2), max_size=5))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_rows_bits_do_not_depend_on_which_rows_are_fed_with_it(
    dtype: torch.dtype, window: int | None, shape: tuple[int, int], cuts: set[int]
) -> None:
    """Wherever a prompt is cut, so long as no row is left alone in its tile."""
    kept = [cut for cut in sorted(cuts) if cut % TILE not in (1, TILE - 1)]
    bounds = [0, *(cut for cut, after in pairwise([*kept, LONGEST]) if after - cut >= 2), LONGEST]
    causal = Causal(window=window, heads=shape[0], kv_heads=shape[1], dtype=dtype)
    parts = [causal.attend(begin, end) for begin, end in pairwise(bounds)]
    assert torch.equal(torch.cat(parts), causal.attend(0, LONGEST))


def single(*ends: int, starts: Sequence[int] | None = None) -> list[RowRun]:
    first = starts or [0] * len(ends)
    return [
        RowRun(row_start=row, row_end=row + 1, sequence=0, key_start=begin, key_end=end)
        for row, (begin, end) in enumerate(zip(first, ends, strict=True))
    ]


def test_rows_are_grouped_by_tiles_of_positions() -> None:
    runs = single(*range(TILE - 2, 2 * TILE + 2))
    assert [[run.key_end for run in group] for group in tiles(runs)] == [
        [TILE - 2, TILE - 1, TILE],
        [*range(TILE + 1, 2 * TILE + 1)],
        [2 * TILE + 1],
    ]


@pytest.mark.parametrize(
    "runs",
    [
        pytest.param(single(5, 7), id="a key is left out"),
        pytest.param(single(7, 6), id="fewer keys than before"),
        pytest.param(single(5, 6, starts=[2, 4]), id="the window jumps"),
        pytest.param(single(5, 6, starts=[2, 1]), id="the window goes back"),
        pytest.param([attrs.evolve(single(5)[0], row_end=2), attrs.evolve(single(6)[0], row_start=2, row_end=3)],
                     id="two rows see the same"),
        pytest.param([single(5)[0], attrs.evolve(single(6)[0], row_start=4, row_end=5)], id="rows between them"),
    ],
)  # fmt: skip
def test_what_is_no_staircase_is_computed_run_by_run(runs: list[RowRun]) -> None:
    assert [*tiles(runs)] == [[run] for run in runs]


def test_a_causal_prompt_takes_one_call_for_each_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = list[int]()

    def counted(query: Tensor, keys: Tensor, values: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
        sizes.append(len(keys))
        return torch.zeros_like(query)

    monkeypatch.setattr(staircase, "fused", counted)
    Causal(window=None, heads=2, kv_heads=1).attend(0, LONGEST)
    Causal(window=5, heads=2, kv_heads=1).attend(0, LONGEST)
    assert sizes == [TILE, 2 * TILE, 3 * TILE, TILE, TILE + 4, TILE + 4]
