"""Packing a step's ragged windows into flat arrays: slots, visibility, and the rows to sample. Host side only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import attrs
import numpy as np

from diffulex_core.asked_rows import AskedRows, Guided
from diffulex_core.pattern import AttentionPattern, Extent, IntArray, Phase
from diffulex_core.types import (
    BoolArray,
    FloatArray,
    Refresh,
    RowRuns,
    SamplingBatch,
    Span,
    StepPlan,
    Window,
)

Array = TypeVar("Array", IntArray, BoolArray)

ROW_MULTIPLE = 8
"""Rows are padded to a multiple of this, so that matrix kernels treat a row alike whatever stands beside it."""


@attrs.frozen(kw_only=True, eq=False)
class Visibility:
    """Key intervals of all rows for one layer kind: [rows] start and exclusive end, and the same as runs of rows."""

    key_start: IntArray
    key_end: IntArray
    runs: RowRuns


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
    sequences = _sequences(plan)
    spans = [window.span for window in sequences]
    lengths = np.array([len(span.tokens) for span in spans])
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    total = int(offsets[-1])
    padded = round_up(total)
    owners = np.repeat(np.arange(len(spans)), lengths)
    positions = np.arange(total) + _each(np.array([span.start for span in spans]) - offsets[:-1], owners)
    final = positions < _each([span.store_until for span in spans], owners)
    page_tables = _page_tables(sequences)
    slots = _slots(spans, positions, owners, page_tables, page_size)
    asked = AskedRows(plan, _first_rows(sequences, plan, offsets))
    kept = {
        window.request_id: offset + window.span.keep - window.span.start
        for window, offset in zip(sequences, offsets.tolist(), strict=False)
        if window.span.keep is not None
    }
    recalled = [index for index, window in enumerate(plan.windows) if window.span.recall]
    remembered = [index for index, window in enumerate(plan.windows) if window.span.remember]
    return PackedStep(
        input_ids=_pad(np.concatenate([span.tokens for span in spans]), padded, 0),
        positions=_pad(positions, padded, 0),
        slots=_pad(slots, padded, -1),
        row_sequence=_pad(owners, padded, 0),
        final=_pad(final, padded, False),
        page_tables=page_tables,
        visibility=tuple(_visibility(sequences, pattern, windows, positions, owners)),
        head_rows=asked.head_rows,
        carried=asked.carried,
        guided=asked.guided(),
        sampling=asked.batch(),
        kept_rows=np.array([*kept.values()], dtype=np.int64),
        kept=tuple(kept),
        blended=_blended(sequences, offsets),
        recalled_rows=asked.head_rows[asked.of(recalled)],
        recalled=tuple(plan.windows[index].request_id for index in recalled),
        remembered_rows=asked.of(remembered),
        remembered=asked.counts(remembered),
        refreshes=tuple(_refreshes(sequences, offsets, page_size)),
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


def _pad(values: Array, length: int, fill: int) -> Array:
    padded = np.full(length, fill, dtype=values.dtype)
    padded[: len(values)] = values
    return padded


def _each(values: Sequence[int] | IntArray, owners: IntArray) -> IntArray:
    """[rows] the value of each row's owner."""
    return np.asarray(values, dtype=np.int64).take(owners)


def _sequences(plan: StepPlan) -> Sequence[Window]:
    """The plan's windows, and behind each one of its own for its second sequence, which samples nothing."""
    if not [window for window in plan.windows if window.span.guidance is not None]:
        return plan.windows
    windows = []
    for window in plan.windows:
        windows.append(window)
        span = window.span
        if span.guidance is not None:
            assert window.second_table is not None, "guidance needs pages of its own"
            second = attrs.evolve(span, tokens=span.guidance.tokens, groups=(), keep=None, guidance=None)
            windows.append(attrs.evolve(window, span=second, page_table=window.second_table, second_table=None))
    return windows


def _first_rows(sequences: Sequence[Window], plan: StepPlan, offsets: IntArray) -> IntArray:
    """[windows] where each of the plan's windows begins."""
    sizes = [1 if window.span.guidance is None else 2 for window in plan.windows]
    first: IntArray = offsets[np.cumsum([0, *sizes])[:-1]]
    return first


def _page_tables(sequences: Sequence[Window]) -> IntArray:
    """[sequences, pages] -1 where a table ends."""
    tables = [window.page_table for window in sequences]
    filled = np.full((len(tables), max(map(len, tables))), -1, dtype=np.int64)
    for row, table in enumerate(tables):
        filled[row, : len(table)] = table
    return filled


def _slots(
    spans: Sequence[Span], positions: IntArray, owners: IntArray, page_tables: IntArray, page_size: int
) -> IntArray:
    """[rows] physical slot of each row, -1 where nothing is stored."""
    shifts = [0 if span.packed is None else span.packed - span.first_stored for span in spans]
    logical = positions + _each(shifts, owners) if any(shifts) else positions
    stored = np.ones(len(positions), dtype=np.bool_)
    if [span for span in spans if span.store_from > span.start]:
        stored = positions >= _each([span.store_from for span in spans], owners)
        logical = np.where(stored, logical, 0)
    pages = logical // page_size
    # One index into the flat tables: two would cost three times as much.
    physical = page_tables.ravel().take(owners * page_tables.shape[1] + pages)
    return np.where(stored, (physical - pages) * page_size + logical, -1)


def _visibility(
    sequences: Sequence[Window],
    pattern: AttentionPattern,
    windows: Sequence[int | None],
    positions: IntArray,
    owners: IntArray,
) -> Iterator[Visibility]:
    """The keys of all rows, layer kind by layer kind. The pattern is asked once for all rows of a phase."""
    spans = [window.span for window in sequences]
    prompts = _each([window.prompt_len for window in sequences], owners)
    finals = _each([span.store_until for span in spans], owners)
    ends = _each([span.slots if span.visible_end is None else span.visible_end for span in spans], owners)
    extents = list[tuple[slice | BoolArray, Extent]]()
    for phase in Phase:
        mine = [span.phase is phase for span in spans]
        if any(mine):
            rows = slice(None) if all(mine) else np.array(mine)[owners]
            extent = Extent(prompt_len=prompts[rows], phase=phase, final_end=finals[rows], end=ends[rows])
            extents.append((rows, extent))
    padded = round_up(len(positions))
    key_end = np.zeros(padded, dtype=np.int64)
    for rows, extent in extents:
        key_end[: len(positions)][rows] = np.minimum(pattern.key_end(positions[rows], extent), extent.end)
    packed = np.array([span.packed is not None for span in spans])
    if packed.any():
        key_end[: len(positions)] = np.where(packed[owners], ends, key_end[: len(positions)])
    for width in windows:
        key_start = np.zeros(padded, dtype=np.int64)
        if width is not None:
            assert not packed.any(), "slots of kept K/V are no positions, so a sliding window cannot find its own"
            for rows, extent in extents:
                key_start[: len(positions)][rows] = pattern.key_start(positions[rows], extent, width)
        yield Visibility(
            key_start=key_start,
            key_end=key_end,
            runs=RowRuns(key_start=key_start, key_end=key_end, row_sequence=owners),
        )


def _bounds(offsets: IntArray) -> tuple[list[int], list[int]]:
    """The first row of each sequence, and the row after its last."""
    return offsets[:-1].tolist(), offsets[1:].tolist()


def _refreshes(windows: Sequence[Window], offsets: IntArray, page_size: int) -> Iterator[PackedRefresh]:
    for window, start, end in zip(windows, *_bounds(offsets), strict=True):
        refresh = window.span.refresh
        if refresh is not None:
            at = np.arange(refresh.keep)
            slots = window.page_table[at // page_size] * page_size + at % page_size
            yield PackedRefresh(start=start, end=end, slots=slots, refresh=refresh)


def _blended(windows: Sequence[Window], offsets: IntArray) -> BlendedRows | None:
    """The windows' blends as rows of the batch; those with fewer ids are filled up with weight 0."""
    found = [
        (window.span.blends, offset - window.span.start)
        for window, offset in zip(windows, offsets.tolist(), strict=False)
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
