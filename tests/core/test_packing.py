"""Packing a step: where each row's K/V go, which keys it sees, and which rows are sampled for whom."""

from __future__ import annotations

import itertools

import attrs
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from diffulex_core.packing import PackedStep, pack
from diffulex_core.padding import round_up
from diffulex_core.pattern import AttentionPattern, BlockCausal, FullPrefix, Phase
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.types import CARRIED, Guidance, Refresh, SampleGroup, Span, StepPlan, Window
from tests.core.oracles import visible_end


@attrs.frozen
class Step:
    """A plan and what it was made for."""

    plan: StepPlan
    pattern: AttentionPattern
    page_size: int
    full_prefix: bool
    shift: int


@st.composite
def steps(draw: st.DrawFn) -> Step:
    """Windows of a few requests: block-aligned spans at any place, with groups of sampled rows."""
    block = draw(st.sampled_from([1, 2, 4]))
    page_size = block * draw(st.sampled_from([1, 2, 4]))
    full_prefix, shift = draw(st.booleans()), draw(st.integers(0, 1))
    windows = []
    next_page = 0
    for number in range(draw(st.integers(1, 4))):
        prompt = draw(st.integers(1, 12))
        prefill = draw(st.booleans())
        start = 0 if prefill else block * draw(st.integers(0, 4))
        end = start + block * draw(st.integers(1, 4))
        if prefill:
            end = max(end, -(-prompt // block) * block)
        asked = draw(st.sets(st.integers(start, end - 1), max_size=6))
        groups = tuple(
            SampleGroup(
                block=index,
                positions=np.array(positions, dtype=np.int64),
                rows=np.array(positions, dtype=np.int64) - start - shift,
                accept_threshold=draw(st.sampled_from([0.25, 0.5, 0.75])),
                force_one=draw(st.booleans()),
            )
            for index in range(start // block, end // block)
            if (positions := sorted(at for at in asked if at // block == index))
        )
        span = Span(
            start=start,
            tokens=np.array(draw(st.lists(st.integers(0, 99), min_size=end - start, max_size=end - start))),
            catch_up=0,
            store_until=draw(st.integers(start, end)),
            phase=Phase.PREFILL if prefill else Phase.DECODE,
            groups=groups,
            advances=True,
            store_from=draw(st.integers(0, end)),
            keep=draw(st.none() | st.integers(start, end - 1)),
        )
        pages = -(-end // page_size) + draw(st.integers(0, 2))
        table = np.arange(next_page, next_page + pages)[::-1].copy()
        next_page += pages
        windows.append(
            Window(
                request_id=10 + number,
                span=span,
                prompt_len=prompt,
                page_table=table,
                params=SamplingParams(),
                draw=number,
            )
        )
    pattern: AttentionPattern = FullPrefix(block_size=block) if full_prefix else BlockCausal(block_size=block)
    return Step(StepPlan(step=0, windows=tuple(windows)), pattern, page_size, full_prefix, shift)


def packed(step: Step, widths: tuple[int | None, ...] = (None,)) -> PackedStep:
    return pack(step.plan, step.pattern, widths, step.page_size)


def rows_of(plan: StepPlan) -> list[tuple[int, Window, int]]:
    """(index of the window, window, position) of each row in order."""
    return [
        (index, window, position)
        for index, window in enumerate(plan.windows)
        for position in range(window.span.start, window.span.start + len(window.span.tokens))
    ]


@given(steps())
@settings(deadline=None)
def test_every_row_carries_its_token_position_and_slot(step: Step) -> None:
    result = packed(step)
    for row, (index, window, position) in enumerate(rows_of(step.plan)):
        assert result.input_ids[row] == window.span.tokens[position - window.span.start]
        assert result.layout.positions[row] == position
        assert result.layout.row_sequence[row] == index
        slot = window.page_table[position // step.page_size] * step.page_size + position % step.page_size
        assert result.layout.slots[row] == (slot if position >= window.span.store_from else -1)


@given(steps())
@settings(deadline=None)
def test_a_row_is_final_when_it_lies_below_what_its_span_stores(step: Step) -> None:
    result = packed(step)
    told = [position < window.span.store_until for _, window, position in rows_of(step.plan)]
    assert result.layout.final.tolist() == told + [False] * (len(result.input_ids) - len(told))


@given(steps())
@settings(deadline=None)
def test_padding_reaches_the_next_multiple_and_stores_and_sees_nothing(step: Step) -> None:
    result = packed(step)
    rows = step.plan.rows
    assert len(result.input_ids) == round_up(rows)
    assert round_up(rows) - rows in range(8)
    assert round_up(rows) % 8 == 0
    [visibility] = result.layout.visibility
    assert (result.layout.slots[rows:] == -1).all()
    for padded in (
        result.input_ids,
        result.layout.positions,
        result.layout.row_sequence,
        visibility.key_start,
        visibility.key_end,
    ):
        assert len(padded) == round_up(rows)
        assert (padded[rows:] == 0).all()


@given(steps())
@settings(deadline=None)
def test_page_tables_end_with_minus_one(step: Step) -> None:
    result = packed(step)
    for index, window in enumerate(step.plan.windows):
        held = len(window.page_table)
        assert result.layout.page_tables[index, :held].tolist() == window.page_table.tolist()
        assert (result.layout.page_tables[index, held:] == -1).all()


@given(steps(), st.sampled_from([1, 2, 5, 100]))
@settings(deadline=None)
def test_a_row_sees_what_the_strategy_says_within_the_sliding_window(step: Step, width: int) -> None:
    full, sliding = packed(step, (None, width)).layout.visibility
    block = step.pattern.block_size
    for row, (_, window, position) in enumerate(rows_of(step.plan)):
        end = visible_end(
            position,
            window.prompt_len,
            block,
            full_prefix=step.full_prefix and window.span.phase is Phase.PREFILL,
            first_step=True,
        )
        assert full.key_start[row] == 0
        assert full.key_end[row] == sliding.key_end[row] == end
        seen = {key for key in range(end) if position - key < width}
        assert seen == set(range(sliding.key_start[row], sliding.key_end[row]))


def test_nothing_past_the_fed_rows_is_seen() -> None:
    """A prompt replayed alone ends inside a block; the rest of that block holds no K/V."""
    span = Span(start=0, tokens=np.arange(6), catch_up=6, store_until=4, phase=Phase.DECODE, groups=(), advances=False)
    window = Window(request_id=0, span=span, prompt_len=6, page_table=np.array([3, 1]), params=SamplingParams(), draw=0)
    result = pack(StepPlan(step=0, windows=(window,)), BlockCausal(block_size=4), [None], 4)
    assert result.layout.visibility[0].key_end.tolist() == [4, 4, 4, 4, 6, 6, 0, 0]


@given(steps(), st.sampled_from([None, 1, 3]))
@settings(deadline=None)
def test_runs_are_the_same_visibility_in_the_fewest_pieces(step: Step, width: int | None) -> None:
    result = packed(step, (width,))
    [visibility] = result.layout.visibility
    rows = step.plan.rows
    told = [
        (sequence, start, end)
        for sequence, start, end in zip(
            result.layout.row_sequence[:rows].tolist(),
            visibility.key_start[:rows].tolist(),
            visibility.key_end[:rows].tolist(),
            strict=True,
        )
    ]
    spelled: list[tuple[int, int, int]] = []
    for run in visibility.runs:
        assert run.row_start == len(spelled) < run.row_end
        spelled += [(run.sequence, run.key_start, run.key_end)] * (run.row_end - run.row_start)
    assert spelled == told
    assert len(visibility.runs) == 1 + sum(one != other for one, other in itertools.pairwise(told))


@given(steps())
@settings(deadline=None)
def test_sampled_rows_know_their_request_their_group_and_its_rule(step: Step) -> None:
    result = packed(step)
    batch = result.sampling
    expected = [
        (index, int(position), group)
        for index, window in enumerate(step.plan.windows)
        for group in window.span.groups
        for position in group.positions
    ]
    rows = rows_of(step.plan)
    assert len(result.head_rows) == len(batch.positions) == len(batch.window_of_row) == len(expected)
    groups = [group for window in step.plan.windows for group in window.span.groups]
    assert len(batch.accept_threshold) == len(batch.force_one) == len(groups)
    carried = iter(result.carried)
    for at, (index, position, group) in enumerate(expected):
        window = step.plan.windows[index]
        if position - step.shift < window.span.start:
            assert result.head_rows[at] == CARRIED
            assert next(carried) == window.request_id
        else:
            assert rows[result.head_rows[at]] == (index, window, position - step.shift)
        assert (batch.positions[at], batch.window_of_row[at]) == (position, index)
        number = batch.group_of_row[at]
        assert groups[number] is group
        assert (batch.accept_threshold[number], batch.force_one[number]) == (group.accept_threshold, group.force_one)
    assert tuple(batch.windows) == step.plan.windows
    assert next(carried, None) is None


@given(steps())
@settings(deadline=None)
def test_rows_to_keep_are_those_of_the_positions_that_the_spans_name(step: Step) -> None:
    result = packed(step)
    rows = rows_of(step.plan)
    found = {request: rows[row][1:] for request, row in zip(result.kept, result.kept_rows, strict=True)}
    named = [window for window in step.plan.windows if window.span.keep is not None]
    assert found == {window.request_id: (window, window.span.keep) for window in named}


@given(
    page_size=st.sampled_from([1, 2, 4]),
    packed_slots=st.integers(1, 9),
    region=st.tuples(st.integers(1, 30), st.integers(1, 6)),
    before=st.booleans(),
)
def test_rows_behind_kept_pairs_follow_them_in_the_pages_and_all_see_both(
    page_size: int, packed_slots: int, region: tuple[int, int], *, before: bool
) -> None:
    start, length = region
    first = start - before
    span = Span(
        start=first,
        tokens=np.arange(start + length - first),
        catch_up=0,
        store_until=0,
        phase=Phase.DECODE,
        groups=(),
        advances=True,
        store_from=start,
        packed=packed_slots,
        held=packed_slots,
    )
    assert span.slots == packed_slots + length
    assert not span.full_pass
    table = np.arange(-(-span.slots // page_size))[::-1] + 3
    window = Window(request_id=0, span=span, prompt_len=1, page_table=table, params=SamplingParams(), draw=0)
    result = pack(StepPlan(step=0, windows=(window,)), BlockCausal(block_size=2), [None], page_size)
    rows = length + before
    expected = [table[slot // page_size] * page_size + slot % page_size for slot in range(packed_slots, span.slots)]
    assert result.layout.slots[:rows].tolist() == [-1] * before + expected
    assert result.layout.positions[:rows].tolist() == list(range(first, start + length))
    assert result.layout.visibility[0].key_start[:rows].tolist() == [0] * rows
    assert result.layout.visibility[0].key_end[:rows].tolist() == [span.slots] * rows
    assert not result.layout.final.any()
    with pytest.raises(AssertionError, match="sliding window"):
        pack(StepPlan(step=0, windows=(window,)), BlockCausal(block_size=2), [8], page_size)


def test_a_refresh_names_the_rows_of_its_sequence_and_the_first_slots_of_its_own_pages() -> None:
    refresh = Refresh(start=4, end=6, keep=3, per_head=False, pool=1)
    guidance = Guidance(tokens=np.arange(8), scale=1.0)
    span = Span(
        start=0,
        tokens=np.arange(8),
        catch_up=0,
        store_until=0,
        phase=Phase.DECODE,
        groups=(),
        advances=True,
        guidance=guidance,
        refresh=refresh,
        held=3,
    )
    assert span.full_pass
    assert span.slots == 8
    window = Window(
        request_id=0,
        span=span,
        prompt_len=4,
        page_table=np.array([5, 1, 7, 0]),
        second_table=np.array([2, 6, 3, 4]),
        params=SamplingParams(),
        draw=0,
    )
    plain = attrs.evolve(window, request_id=1, span=attrs.evolve(span, refresh=None, guidance=None))
    result = pack(StepPlan(step=0, windows=(plain, window)), BlockCausal(block_size=2), [None], 2)
    first, second = result.refreshes
    assert (first.start, first.end, second.start, second.end) == (8, 16, 16, 24)
    assert first.slots.tolist() == [10, 11, 2]
    assert second.slots.tolist() == [4, 5, 12]
    assert first.refresh is second.refresh is refresh


def test_a_step_that_samples_nothing_has_empty_arrays_of_whole_numbers() -> None:
    span = Span(start=0, tokens=np.arange(4), catch_up=4, store_until=4, phase=Phase.DECODE, groups=(), advances=False)
    window = Window(request_id=0, span=span, prompt_len=9, page_table=np.array([0]), params=SamplingParams(), draw=0)
    result = pack(StepPlan(step=0, windows=(window,)), BlockCausal(block_size=4), [None], 4)
    for empty in (result.head_rows, result.kept_rows, result.sampling.positions, result.sampling.window_of_row):
        assert empty.shape == (0,)
        assert empty.dtype == np.int64
    assert result.sampling.group_of_row.shape == (0,)


@pytest.mark.parametrize(("rows", "padded"), [(1, 8), (8, 8), (9, 16), (0, 0)])
def test_rows_are_rounded_up_to_eights(rows: int, padded: int) -> None:
    assert round_up(rows) == padded
