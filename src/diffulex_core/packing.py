"""Packing a step's ragged windows into flat arrays: slots, visibility, and the rows to sample. Host side only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import attrs
import numpy as np

from diffulex_core.pattern import AttentionPattern, Extent, IntArray
from diffulex_core.types import (
    CARRIED,
    BoolArray,
    FloatArray,
    Questions,
    Refresh,
    RowRun,
    SampleGroup,
    SamplingBatch,
    Span,
    StepPlan,
    Window,
)

ROW_MULTIPLE = 8
"""Rows are padded to a multiple of this, so that matrix kernels treat a row alike whatever stands beside it."""


@attrs.frozen(kw_only=True, eq=False)
class Visibility:
    """Key intervals of all rows for one layer kind: [rows] start and exclusive end, and the same as runs of rows."""

    key_start: IntArray
    key_end: IntArray
    runs: tuple[RowRun, ...]


@attrs.frozen(kw_only=True, eq=False)
class Guided:
    """Rows whose logits are joined with those of a second row (classifier-free guidance).

    Attributes:
        at: [g] index into the head's rows, ascending.
        rows: [g] row of the batch that each is joined with.
        scale: [g] float32 weight of guidance.
    """

    at: IntArray
    rows: IntArray
    scale: FloatArray


@attrs.frozen(kw_only=True, eq=False)
class BlendedRows:
    """Rows that are fed weighted sums of embeddings, padded to `ROW_MULTIPLE` but for `rows`.

    Attributes:
        rows: [n] distinct rows of the batch.
        ids: [padded, k] int64.
        weights: [padded, k] float32; 0 where there is no id, and in padding.
        match_norm: [padded] bool: scale the sum to the weighted sum of the norms.
    """

    rows: IntArray
    ids: IntArray
    weights: FloatArray
    match_norm: BoolArray


@attrs.frozen(kw_only=True, eq=False)
class PackedRefresh:
    """A full pass of one sequence of which some K/V are kept.

    Attributes:
        start, end: rows of the batch.
        slots: [keep] int64 physical slots that the kept K/V go to.
        refresh: what is kept.
    """

    start: int
    end: int
    slots: IntArray
    refresh: Refresh


@attrs.frozen(kw_only=True, eq=False)
class PackedStep:
    """The rows of a plan, padded to `ROW_MULTIPLE`.

    Attributes:
        input_ids, positions: [rows] int64; 0 in padding rows.
        slots: [rows] int64 physical slot of each row's K/V; -1 in padding rows and in rows that store nothing.
        row_sequence: [rows] int64 index of the row's sequence; 0 in padding rows.
        final: [rows] bool: the row's K/V will not change again; False in padding rows.
        page_tables: [sequences, pages] int64, -1 where a table ends; a window's second sequence follows its first.
        visibility: one entry for each layer kind.
        head_rows: [n] rows that go through the head, without padding; `CARRIED` where it is one of an earlier step.
        carried: requests whose kept rows those are, one for each `CARRIED` in `head_rows`.
        guided: which of them are joined with rows of second sequences.
        sampling: whose rows those are.
        kept_rows: [m] rows whose hidden rows are kept for later steps.
        kept: [m] requests that they are kept for.
        blended: rows that are fed blended embeddings; None = no row is.
        recalled_rows: [r] rows that are fed what the step before believed of them.
        recalled: requests whose rows those are, in the order of their rows.
        remembered_rows: [s] rows among `head_rows`, by index there, whose beliefs are kept.
        remembered: requests that they are kept for, and how many rows each has, in the order of their rows.
        refreshes: the sequences of which some K/V are kept.
    """

    input_ids: IntArray
    positions: IntArray
    slots: IntArray
    row_sequence: IntArray
    final: BoolArray
    page_tables: IntArray
    visibility: tuple[Visibility, ...]
    head_rows: IntArray
    carried: tuple[int, ...]
    guided: Guided
    sampling: SamplingBatch
    kept_rows: IntArray
    kept: tuple[int, ...]
    blended: BlendedRows | None
    recalled_rows: IntArray
    recalled: tuple[int, ...]
    remembered_rows: IntArray
    remembered: tuple[tuple[int, int], ...]
    refreshes: tuple[PackedRefresh, ...]


def pack(plan: StepPlan, pattern: AttentionPattern, windows: Sequence[int | None], page_size: int) -> PackedStep:
    """Lay out the rows of `plan`.

    Args:
        plan: at least one window, each with at least one row.
        pattern: who sees whom.
        windows: sliding-window width of each layer kind, None for full attention.
        page_size: slots per page.
    """
    laid = _sequences(plan)
    lengths = np.array([len(window.span.tokens) for window in laid.windows])
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    total = int(offsets[-1])
    padded = round_up(total)
    row_sequence = np.repeat(np.arange(len(lengths)), lengths)
    input_ids = np.concatenate([window.span.tokens for window in laid.windows])
    ranges = [np.arange(window.span.start, window.span.end) for window in laid.windows]
    extents = [_extent(window) for window in laid.windows]
    positions = np.concatenate(ranges)
    final_end = np.repeat([extent.final_end for extent in extents], lengths)
    packed = [window.span.packed is not None for window in laid.windows]
    key_end = np.concatenate(
        [
            np.full_like(at, extent.end) if sparse else np.minimum(pattern.key_end(at, extent), extent.end)
            for at, extent, sparse in zip(ranges, extents, packed, strict=True)
        ]
    )

    def key_start(width: int | None) -> IntArray:
        if width is None:
            return np.zeros_like(positions)
        assert not any(packed), "slots of kept K/V are no positions, so a sliding window cannot find its own"
        return np.concatenate(
            [pattern.key_start(at, extent, width) for at, extent in zip(ranges, extents, strict=True)]
        )

    page_tables = np.full((len(lengths), max(len(window.page_table) for window in laid.windows)), -1, dtype=np.int64)
    for index, window in enumerate(laid.windows):
        page_tables[index, : len(window.page_table)] = window.page_table
    logical = positions + np.repeat([_shift(window.span) for window in laid.windows], lengths)
    unstored = positions < np.repeat([window.span.store_from for window in laid.windows], lengths)
    logical[unstored] = 0
    slots = page_tables[row_sequence, logical // page_size] * page_size + logical % page_size
    slots[unstored] = -1
    head_rows, carried = _head_rows(laid, offsets)
    kept_rows, kept = _kept_rows(laid, offsets)
    recalled_rows, recalled = _recalled_rows(laid, offsets)
    remembered_rows, remembered = _remembered_rows(plan)
    return PackedStep(
        input_ids=_pad(input_ids, padded, 0),
        positions=_pad(positions, padded, 0),
        slots=_pad(slots, padded, -1),
        row_sequence=_pad(row_sequence, padded, 0),
        final=_pad(positions, padded, 0) < _pad(final_end, padded, 0),
        page_tables=page_tables,
        visibility=tuple(_visibility(key_start(width), key_end, row_sequence, padded) for width in windows),
        head_rows=head_rows,
        carried=carried,
        guided=_guided(laid, offsets),
        sampling=_sampling(plan),
        kept_rows=kept_rows,
        kept=kept,
        blended=_blended(laid, offsets),
        recalled_rows=recalled_rows,
        recalled=recalled,
        remembered_rows=remembered_rows,
        remembered=remembered,
        refreshes=tuple(_refreshes(laid, offsets, page_size)),
    )


def parts_of_head(count: int, guided: IntArray, budget: int) -> list[tuple[int, int]]:
    """Bounds of consecutive parts of the head's rows.

    Args:
        count: the head's rows.
        guided: [g] those that need a second row.
        budget: most rows of a part, second ones included; a part holds at least one of the `count`.
    """
    costs = np.ones(count, dtype=np.int64)
    costs[guided] = 2
    parts, begin, spent = list[tuple[int, int]](), 0, 0
    for row, cost in enumerate(costs.tolist()):
        if row > begin and spent + cost > budget:
            parts.append((begin, row))
            begin, spent = row, 0
        spent += cost
    return [*parts, (begin, len(costs))]


def round_up(rows: int) -> int:
    """The smallest multiple of `ROW_MULTIPLE` that holds `rows`."""
    return -(-rows // ROW_MULTIPLE) * ROW_MULTIPLE


def _pad(values: IntArray, length: int, fill: int) -> IntArray:
    return np.concatenate((values, np.full(length - len(values), fill, dtype=np.int64)))


def _extent(window: Window) -> Extent:
    span = window.span
    end = span.slots if span.visible_end is None else span.visible_end
    return Extent(prompt_len=window.prompt_len, phase=span.phase, final_end=span.store_until, end=end)


def _shift(span: Span) -> int:
    """Distance from a row's position to its slot."""
    return 0 if span.packed is None else span.packed - span.first_stored


def _refreshes(plan: StepPlan, offsets: IntArray, page_size: int) -> Iterator[PackedRefresh]:
    for window, start, end in zip(plan.windows, offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        refresh = window.span.refresh
        if refresh is not None:
            at = np.arange(refresh.keep)
            slots = window.page_table[at // page_size] * page_size + at % page_size
            yield PackedRefresh(start=start, end=end, slots=slots, refresh=refresh)


def _visibility(key_start: IntArray, key_end: IntArray, row_sequence: IntArray, padded: int) -> Visibility:
    changes = np.diff(key_end) != 0
    changes |= np.diff(key_start) != 0
    changes |= np.diff(row_sequence) != 0
    starts = np.concatenate(([0], np.flatnonzero(changes) + 1))
    ends = np.concatenate((starts[1:], [len(key_end)]))
    runs = tuple(
        RowRun(row_start=begin, row_end=end, sequence=sequence, key_start=first, key_end=last)
        for begin, end, sequence, first, last in zip(
            starts.tolist(),
            ends.tolist(),
            row_sequence[starts].tolist(),
            key_start[starts].tolist(),
            key_end[starts].tolist(),
            strict=True,
        )
    )
    return Visibility(key_start=_pad(key_start, padded, 0), key_end=_pad(key_end, padded, 0), runs=runs)


def _head_rows(plan: StepPlan, offsets: IntArray) -> tuple[IntArray, tuple[int, ...]]:
    """Rows of the batch that decide something, and the requests that a kept row decides something for."""
    rows, carried = [np.empty(0, dtype=np.int64)], list[int]()
    for window, offset in zip(plan.windows, offsets[:-1].tolist(), strict=True):
        for group in window.span.groups:
            rows.append(np.where(group.rows == CARRIED, CARRIED, group.rows + offset))
            carried += [window.request_id] * int((group.rows == CARRIED).sum())
    return np.concatenate(rows), tuple(carried)


def _sequences(plan: StepPlan) -> StepPlan:
    """The plan with a window of its own for each second sequence, right behind the first's; it samples nothing."""
    windows = []
    for window in plan.windows:
        windows.append(window)
        span = window.span
        if span.guidance is not None:
            assert window.second_table is not None, "guidance needs pages of its own"
            second = attrs.evolve(span, tokens=span.guidance.tokens, groups=(), keep=None, guidance=None)
            windows.append(attrs.evolve(window, span=second, page_table=window.second_table, second_table=None))
    return StepPlan(step=plan.step, windows=tuple(windows))


def _guided(laid: StepPlan, offsets: IntArray) -> Guided:
    at, rows, scale = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.float32)]
    begin = 0
    for window, offset in zip(laid.windows, offsets[:-1].tolist(), strict=True):
        for group in window.span.groups:
            count = len(group.rows)
            if window.span.guidance is not None:
                assert (group.rows != CARRIED).all(), "a second sequence keeps no rows"
                at.append(np.arange(begin, begin + count))
                rows.append(group.rows + offset + len(window.span.tokens))
                scale.append(np.full(count, window.span.guidance.scale, dtype=np.float32))
            begin += count
    return Guided(at=np.concatenate(at), rows=np.concatenate(rows), scale=np.concatenate(scale))


def _kept_rows(plan: StepPlan, offsets: IntArray) -> tuple[IntArray, tuple[int, ...]]:
    """Rows of the batch that later steps need, and the requests that need them."""
    kept = {
        window.request_id: offset + window.span.keep - window.span.start
        for window, offset in zip(plan.windows, offsets[:-1].tolist(), strict=True)
        if window.span.keep is not None
    }
    return np.array([*kept.values()], dtype=np.int64), tuple(kept)


def _blended(plan: StepPlan, offsets: IntArray) -> BlendedRows | None:
    """The windows' blends as rows of the batch; those with fewer ids are filled up with weight 0."""
    found = [
        (window.span.blends, offset - window.span.start)
        for window, offset in zip(plan.windows, offsets[:-1].tolist(), strict=True)
        if window.span.blends is not None
    ]
    if not found:
        return None
    rows = np.concatenate([blends.positions + shift for blends, shift in found])
    width = max(blends.ids.shape[1] for blends, _ in found)
    ids = np.zeros((round_up(len(rows)), width), dtype=np.int64)
    weights = np.zeros(ids.shape, dtype=np.float32)
    match_norm = np.zeros(len(ids), dtype=np.bool_)
    begin = 0
    for blends, _ in found:
        end, columns = begin + len(blends.positions), blends.ids.shape[1]
        ids[begin:end, :columns], weights[begin:end, :columns] = blends.ids, blends.weights
        match_norm[begin:end] = blends.match_norm
        begin = end
    return BlendedRows(rows=rows, ids=ids, weights=weights, match_norm=match_norm)


def _recalled_rows(plan: StepPlan, offsets: IntArray) -> tuple[IntArray, tuple[int, ...]]:
    """Rows of the batch that are fed what was believed of them, and the requests that own them."""
    rows, recalled = [np.empty(0, dtype=np.int64)], list[int]()
    for window, offset in zip(plan.windows, offsets[:-1].tolist(), strict=True):
        if window.span.recall:
            rows += [group.rows + offset for group in window.span.groups]
            recalled.append(window.request_id)
    return np.concatenate(rows), tuple(recalled)


def _remembered_rows(plan: StepPlan) -> tuple[IntArray, tuple[tuple[int, int], ...]]:
    """Rows of the head whose beliefs are kept, and for each request that they are kept for its number of them."""
    rows, remembered, offset = [np.empty(0, dtype=np.int64)], list[tuple[int, int]](), 0
    for window in plan.windows:
        count = sum(len(group.positions) for group in window.span.groups)
        if window.span.remember:
            rows.append(np.arange(offset, offset + count))
            remembered.append((window.request_id, count))
        offset += count
    return np.concatenate(rows), tuple(remembered)


def _sampling(plan: StepPlan) -> SamplingBatch:
    groups = [(index, group) for index, window in enumerate(plan.windows) for group in window.span.groups]
    sizes = [len(group.positions) for _, group in groups]
    empty = np.empty(0, dtype=np.int64)
    return SamplingBatch(
        positions=np.concatenate([group.positions for _, group in groups]) if groups else empty,
        window_of_row=np.repeat([index for index, _ in groups], sizes) if groups else empty,
        group_of_row=np.repeat(np.arange(len(groups)), sizes),
        accept_threshold=np.array([group.accept_threshold for _, group in groups], dtype=np.float64),
        force_one=np.array([group.force_one for _, group in groups], dtype=np.bool_),
        greedy=np.array([group.greedy for _, group in groups], dtype=np.bool_),
        windows=plan.windows,
        clean_confidence=np.array([group.clean_confidence for _, group in groups], dtype=np.bool_),
        measure=tuple(group.measure for _, group in groups),
        questions=_questions([group for _, group in groups]),
    )


def _questions(groups: Sequence[SampleGroup]) -> Questions | None:
    if not any(group.alternatives or group.discouraged is not None or group.watched is not None for group in groups):
        return None

    def each(tokens: IntArray | None, group: SampleGroup) -> IntArray:
        return np.full(len(group.positions), -1, dtype=np.int64) if tokens is None else tokens

    sizes = [len(group.positions) for group in groups]
    return Questions(
        most=max(group.alternatives for group in groups),
        discouraged=np.concatenate([each(group.discouraged, group) for group in groups]),
        penalty=np.repeat([group.penalty for group in groups], sizes),
        watched=np.concatenate([each(group.watched, group) for group in groups]),
        raw=np.repeat([group.watched_raw for group in groups], sizes),
    )
