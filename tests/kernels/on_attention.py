"""`triton` attention beside the definition, in Triton's interpreter or on a GPU; see `tests/core/test_on_triton.py`."""

from __future__ import annotations

import attrs
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st

from diffulex_core.attention.case import AttentionCase
from diffulex_core.attention.triton.backend import PagedTriton, probe
from diffulex_core.attention.triton.tiles import choose_splits, choose_tiles
from diffulex_core.kernels.on_triton import INTERPRETER
from diffulex_core.testing.attention_problems import Problem, Stretch, problems
from diffulex_core.testing.oracles.attention import dense

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ALLOWED = {torch.float32: 3e-5 if DEVICE == "cpu" else 2e-3, torch.float16: 5e-3, torch.bfloat16: 3e-2}
GIVEN = settings(max_examples=12, deadline=None, derandomize=True, database=None, suppress_health_check=[*HealthCheck])


def case(heads: int = 4, kv_heads: int = 2, head_dim: int = 16, **changed: object) -> AttentionCase:
    plain = AttentionCase(
        device_type=DEVICE,
        dtype=torch.float32,
        head_dim=head_dim,
        num_heads=heads,
        num_kv_heads=kv_heads,
        page_size=8,
        block_size=4,
    )
    return attrs.evolve(plain, **changed)  # type: ignore[arg-type]


CASES = [
    case(),
    case(heads=7, kv_heads=1, head_dim=5, page_size=1, dtype=torch.float16),
    case(heads=6, kv_heads=2, page_size=4, dtype=torch.bfloat16),
    case(heads=21, kv_heads=3, page_size=32, windows=(3,)),
    case(heads=2, kv_heads=2, page_size=16, block_size=32, windows=(None, 6)),
]


def off(problem: Problem) -> float:
    """The largest error, relative to what the dtype allows."""
    exact = dense(problem.query, problem.pages(1), problem.pages(2), problem.batch, problem.scale)
    out = problem.attend(PagedTriton()).double()
    assert bool(out.isfinite().all())
    return float(((out - exact).abs() / (ALLOWED[problem.case.dtype] * (1 + exact.abs()))).max())


def problem_of(wanted: AttentionCase, *sequences: tuple[list[int], list[int]], seed: int = 0, **more: float) -> Problem:
    """Sequences with these starts and ends, in pages from the last to the first, one page of somebody else before."""
    stretches, free = list[Stretch](), 1
    for name, (starts, ends) in enumerate(sequences):
        pages = -(-max(ends) // wanted.page_size)
        table = tuple(range(free + pages - 1, free - 1, -1))
        stretches.append(Stretch(name=name, key_start=tuple(starts), key_end=tuple(ends), slots=max(ends), table=table))
        free += pages
    return Problem(
        case=wanted,
        stretches=tuple(stretches),
        num_pages=free,
        seed=seed,
        scale=wanted.head_dim**-0.5,
        padding=int(more.get("padding", 0)),
        fill=more.get("fill", float("nan")),
    )


@GIVEN
@given(problem=problems(CASES))
def test_every_row_attends_to_its_own_interval(problem: Problem) -> None:
    assert off(problem) <= 1


@pytest.mark.parametrize("dtype", ALLOWED, ids=str)
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 192, 256, 512])
def test_heads_of_every_published_width_are_served(head_dim: int, dtype: torch.dtype) -> None:
    wanted = case(heads=4, kv_heads=2, head_dim=head_dim, dtype=dtype, page_size=16)
    assert not probe(wanted)
    assert off(problem_of(wanted, ([0] * 4, [37] * 4), ([0, 0], [1, 2]))) <= 1


@pytest.mark.parametrize("rows", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_few_rows_over_many_keys_are_divided_and_put_together(rows: int) -> None:
    wanted = case(page_size=32)
    problem = problem_of(wanted, ([0] * rows, [900 - 300 * (row % 2) for row in range(rows)]), ([0], [3]), padding=2)
    columns = problem.batch.page_tables.shape[1]
    assert choose_splits(2, 8, columns * 32) > 2
    assert off(problem) <= 1


def test_a_tile_that_holds_rows_of_many_sequences_mixes_none_of_them() -> None:
    short = [([0, 0, 0], [2 + at, 3 + at, 3 + at]) for at in range(5)]
    long = ([0] * 40, [100] * 40)
    problem = problem_of(case(), *short, long, *short)
    tiles = choose_tiles(
        rows=70, sequences=11, group=2, head_dim=16, item_bytes=4, shared_bytes=INTERPRETER.shared_bytes
    )
    assert tiles.rows > 3
    assert off(problem) <= 1


def test_slots_that_nobody_sees_are_not_read_between_two_windows() -> None:
    """Rows of one tile whose intervals do not meet; what lies between was never written."""
    problem = problem_of(case(), ([0, 20, 0], [4, 30, 0]), padding=3)
    pages, sequence = problem.pages(2), problem.stretches[0]
    for slot in range(4, 20):
        pages[sequence.table[slot // 8], slot % 8] = torch.nan
    out = PagedTriton().attend(problem.query, problem.pages(1), pages, problem.batch, problem.scale).cpu()
    assert torch.equal(out, problem.attend(PagedTriton()))


def test_no_rows_give_no_rows() -> None:
    problem = problem_of(case(), ([0], [3]))
    empty = attrs.evolve(
        problem.batch, key_start=torch.empty(0), key_end=torch.empty(0), row_sequence=torch.empty(0), runs=()
    )
    out = PagedTriton().attend(problem.query[:0], problem.pages(1), problem.pages(2), empty, 1.0)
    assert out.shape == (0, 4, 16)


def test_pages_of_another_dtype_than_the_query_are_read() -> None:
    problem = problem_of(case(), ([0] * 3, [19] * 3))
    keys, values = (problem.pages(what).to(torch.bfloat16) for what in (1, 2))
    out = PagedTriton().attend(problem.query, keys, values, problem.batch, problem.scale).cpu()
    exact = dense(problem.query, keys, values, problem.batch, problem.scale)
    assert float((out.double() - exact).abs().max()) < ALLOWED[torch.float32] * 3


@given(
    rows=st.integers(1, 5000),
    sequences=st.integers(1, 80),
    group=st.integers(1, 300),
    head_dim=st.integers(1, 512),
    shared_bytes=st.sampled_from([1, 65_536, 101_376, 166_912, 232_448]),
)
def test_tiles_fit_what_a_product_takes_and_waste_no_more_than_half_their_lanes(
    rows: int, sequences: int, group: int, head_dim: int, shared_bytes: int
) -> None:
    tiles = choose_tiles(
        rows=rows, sequences=sequences, group=group, head_dim=head_dim, item_bytes=2, shared_bytes=shared_bytes
    )
    assert tiles.lanes in (16, 32, 64, 128)
    assert 1 <= tiles.rows * tiles.heads <= tiles.lanes
    assert tiles.rows * tiles.heads * 2 >= tiles.lanes or rows // sequences * group < tiles.lanes
