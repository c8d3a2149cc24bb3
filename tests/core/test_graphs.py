"""Steps of static shape: which shape a step takes, what its buffers hold, and when it is captured, replayed or not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from diffulex_core.attention.reference import TorchReference
from diffulex_core.context import ForwardContext, Refreshing, RowStorage, SoftInputs
from diffulex_core.graphs import Bucket, Limits, NotCapturable, Rerun, StaticForward
from diffulex_core.graphs.buckets import padded_rows
from diffulex_core.graphs.buffers import StaticInputs
from diffulex_core.graphs.capture import Replay
from diffulex_core.types import AttentionBatch, Refresh, StepPlan
from tests.core.plans import plan_of

LIMITS = Limits(decode_rows=64, prefill_rows=0, pages=4)
PAGES = (torch.zeros(6, 4, 1, 2),)
DECODE = StepPlan(step=0, windows=())


def context(rows: int, sequences: int = 1, *, pages: int = 2, **more: Any) -> ForwardContext:
    """Of a step whose numbers are all its own: rows count up from `rows`."""
    at = torch.arange(rows)
    batch = AttentionBatch(
        key_start=at % 2,
        key_end=at + rows,
        row_sequence=at % sequences,
        page_tables=torch.arange(sequences * pages).view(sequences, pages),
        page_size=4,
        runs=(),
    )
    final = at % 3 == 0
    return ForwardContext(
        slots=at + 1,
        key_pages=PAGES,
        value_pages=PAGES,
        batches=(batch,),
        backend=TorchReference(),
        final=final,
        **more,
    )


def network(input_ids: Tensor, positions: Tensor, ctx: ForwardContext) -> Tensor:
    """[rows, 8]: everything that a row is told."""
    batch = ctx.batches[0]
    told = (
        input_ids, positions, ctx.slots, batch.key_start, batch.key_end, batch.row_sequence,
        batch.page_tables[batch.row_sequence].amax(1), torch.zeros_like(input_ids) if ctx.final is None else ctx.final,
    )  # fmt: skip
    hidden = torch.stack([each.float() for each in told], dim=1)
    return hidden if ctx.soft is None else ctx.soft.over(hidden)


def step(forward: StaticForward, ctx: ForwardContext, *, salt: int = 0, plan: StepPlan = DECODE) -> tuple[Tensor, str]:
    """One step; its hidden rows are compared with those of the network itself."""
    ids, positions = torch.arange(len(ctx.slots)) + salt, torch.arange(len(ctx.slots)) * 2 + salt
    hidden, how = forward(plan, ids, positions, ctx)
    assert torch.equal(hidden, network(ids, positions, ctx))
    return hidden.clone(), how


@given(st.integers(1, 5000))
def test_rows_are_padded_by_a_quarter_at_most_once_they_cost_anything(rows: int) -> None:
    padded = padded_rows(rows)
    assert padded >= rows
    assert padded % 8 == 0
    assert padded <= max(1.25 * rows, 64)
    assert padded_rows(padded) == padded


def test_a_few_shapes_hold_all_steps_up_to_the_largest() -> None:
    assert sorted({padded_rows(rows) for rows in range(1, 1025)}) == [
        8, 16, 32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 896, 1024,
    ]  # fmt: skip


@given(rows=st.integers(1, 200), sequences=st.integers(1, 40), pages=st.integers(1, 9), prefill=st.booleans())
def test_a_step_has_a_bucket_if_it_is_within_the_limits(rows: int, sequences: int, pages: int, prefill: bool) -> None:
    limits = Limits(decode_rows=128, prefill_rows=64, pages=8)
    bucket = limits.bucket(rows=rows, sequences=sequences, pages=pages, prefill=prefill, soft=False)
    fits = rows <= (64 if prefill else 128) and pages <= 8
    assert (bucket is not None) == fits
    if bucket is not None:
        assert bucket.rows >= rows
        assert sequences <= bucket.sequences < 2 * sequences


def test_rows_behind_the_last_store_nothing_and_see_nothing_whatever_stood_there() -> None:
    ctx = context(24, sequences=3)
    inputs = StaticInputs(Bucket(rows=32, sequences=4), ctx, pages=5, live_runs=False)
    for rows in (24, 8, 16):
        told = context(rows, sequences=2)
        inputs.fill(torch.full((rows,), 7), torch.full((rows,), 9), told)
        found = inputs.context()
        [batch] = found.batches
        for static, given_, blank in (
            (inputs.input_ids, torch.full((rows,), 7), 0),
            (inputs.positions, torch.full((rows,), 9), 0),
            (found.slots, told.slots, -1),
            (batch.key_start, told.batches[0].key_start, 0),
            (batch.key_end, told.batches[0].key_end, 0),
            (batch.row_sequence, told.batches[0].row_sequence, 0),
            (found.final, told.final, False),
        ):
            assert static is not None
            assert given_ is not None
            assert torch.equal(static[:rows], given_)
            assert bool((static[rows:] == blank).all())
        assert torch.equal(batch.page_tables[:2, :2], told.batches[0].page_tables)
        assert bool((batch.page_tables[2:] == -1).all())
        assert bool((batch.page_tables[:, 2:] == -1).all())


def test_a_shape_is_captured_once_and_replayed_for_every_step_that_has_it() -> None:
    graphs = Rerun()
    forward = StaticForward(network=network, graphs=graphs, limits=LIMITS)
    shapes = [(24, 1), (32, 1), (8, 1), (24, 3), (32, 4), (8, 1), (64, 1)]
    ways = [step(forward, context(rows, sequences), salt=salt)[1] for salt, (rows, sequences) in enumerate(shapes)]
    assert ways == ["captured", "replayed", "captured", "captured", "replayed", "replayed", "captured"]
    assert (graphs.captures, graphs.replays) == (4, 7)
    assert len(forward.buckets) == 4


def test_static_buffers_stay_where_they_are() -> None:
    seen = set[tuple[int, ...]]()

    def watched(input_ids: Tensor, positions: Tensor, ctx: ForwardContext) -> Tensor:
        [batch] = ctx.batches
        tensors = (input_ids, positions, ctx.slots, batch.key_start, batch.key_end, batch.row_sequence)
        seen.add(tuple(each.data_ptr() for each in (*tensors, batch.page_tables)))
        return network(input_ids, positions, ctx)

    forward = StaticForward(network=watched, graphs=Rerun(), limits=LIMITS)
    for rows in (16, 9, 12, 16):
        step(forward, context(rows))
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("ctx", "why"),
    [
        (context(65), "more rows than the largest shape"),
        (context(8, pages=5), "more pages than the static tables"),
        (
            context(
                8,
                refreshes=(
                    Refreshing(
                        start=0,
                        end=8,
                        slots=torch.arange(2),
                        refresh=Refresh(start=0, end=4, keep=2, per_head=False, pool=1),
                    ),
                ),
            ),
            "layers that are observed",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_no_shape_holds_runs_eagerly(ctx: ForwardContext, why: str) -> None:
    graphs = Rerun()
    _, how = step(StaticForward(network=network, graphs=graphs, limits=LIMITS), ctx)
    assert (how, graphs.captures) == ("eager", 0), why


def test_steps_that_feed_prompts_run_eagerly_unless_they_may_be_captured() -> None:
    for prefill_rows, ways in ((0, ["eager", "eager"]), (16, ["captured", "eager"])):
        limits = attrs.evolve(LIMITS, prefill_rows=prefill_rows)
        forward = StaticForward(network=network, graphs=Rerun(), limits=limits)
        prompt = plan_of(catch_up=3)
        assert [step(forward, context(rows), plan=prompt)[1] for rows in (16, 24)] == ways
        assert step(forward, context(24), plan=plan_of(catch_up=0))[1] == "captured"


def test_embeddings_have_shapes_of_their_own_and_count_only_in_their_rows() -> None:
    forward = StaticForward(network=network, graphs=Rerun(), limits=LIMITS)
    ways = []
    for rows in ([1, 4], [0], [7, 2, 3], []):
        soft = SoftInputs(rows=torch.tensor(rows, dtype=torch.int64), embeddings=torch.full((len(rows), 8), -3.5))
        ways.append(step(forward, context(8, soft=soft), salt=len(rows))[1])
        ways.append(step(forward, context(8), salt=len(rows))[1])
    assert ways == ["captured", "captured", *["replayed"] * 6]


class Refusing(Rerun):
    """Captures nothing."""

    def capture(self, run: Callable[[], Tensor]) -> Replay:
        self.captures += 1
        raise NotCapturable("it looks at the clock")


def test_what_cannot_be_captured_is_said_once_and_not_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    graphs = Refusing()
    forward = StaticForward(network=network, graphs=graphs, limits=LIMITS)
    with caplog.at_level(logging.WARNING):
        assert [step(forward, context(rows))[1] for rows in (8, 24, 8)] == ["eager"] * 3
    assert graphs.captures == 1
    assert [record.getMessage() for record in caplog.records] == [
        "Steps are not captured but run eagerly, because it looks at the clock."
    ]


class OutOfMemory(Rerun):
    """Has no room for more than 16 rows."""

    def capture(self, run: Callable[[], Tensor]) -> Replay:
        if len(run()) > 16:
            raise torch.OutOfMemoryError("no room")
        return super().capture(run)


def test_shapes_for_which_there_is_no_memory_run_eagerly_and_smaller_ones_do_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    forward = StaticForward(network=network, graphs=OutOfMemory(), limits=LIMITS)
    ways = [step(forward, context(rows))[1] for rows in (32, 40, 24, 16, 8, 32)]
    assert ways == ["eager", "eager", "eager", "captured", "captured", "eager"]
    assert "no memory to capture a step of 32 rows" in caplog.text


def test_runs_of_rows_cannot_be_looked_at_where_a_replay_would_not_look_again() -> None:
    ctx = context(8)
    inputs = StaticInputs(Bucket(rows=8, sequences=1), ctx, pages=2, live_runs=False)
    inputs.fill(ctx.slots, ctx.slots, ctx)
    runs = inputs.context().batches[0].runs
    looks: tuple[Callable[[], object], ...] = (lambda: list(runs), lambda: len(runs), lambda: runs[0])
    for look in looks:
        with pytest.raises(NotCapturable, match=r"AttentionBatch\.runs"):
            look()


def test_captured_steps_refuse_pages_that_moved() -> None:
    forward = StaticForward(network=network, graphs=Rerun(), limits=LIMITS)
    step(forward, context(8))
    moved = attrs.evolve(context(8), key_pages=(PAGES[0].clone(),))
    with pytest.raises(AssertionError, match="stay where they are"):
        step(forward, moved)


@given(slots=st.lists(st.integers(-1, 30), min_size=1, max_size=12))
def test_rows_are_stored_without_a_count_of_them(slots: list[int]) -> None:
    wanted = [slot if slot not in slots[:at] else -1 for at, slot in enumerate(slots)]
    fresh, flat = torch.randn(len(slots), 2, 3), torch.randn(31, 2, 3)
    expected = flat.clone()
    for row, slot in enumerate(wanted):
        if slot >= 0:
            expected[slot] = fresh[row]
    RowStorage.at(torch.tensor(wanted)).put(flat, fresh)
    assert torch.equal(flat, expected)
