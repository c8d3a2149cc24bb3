"""Packing a step's ragged windows into flat arrays: slots, visibility, and the rows to sample. Host side only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import attrs
import numpy as np

from diffulex_core.asked_rows import AskedRows, Guided
from diffulex_core.blend_columns import BlendColumns
from diffulex_core.pattern import AttentionPattern, Extent, IntArray, Phase
from diffulex_core.types import (
    NO_ROW,
    BoolArray,
    FloatArray,
    Refresh,
    RowRuns,
    SamplingBatch,
    Spans,
    StepPlan,
    Windows,
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


def pack(plan: StepPlan, pattern: AttentionPattern, widths: Sequence[int | None], page_size: int) -> PackedStep:
    """Lay out the rows of `plan`.

    Args:
        plan: at least one window, each with at least one row.
        pattern: who sees whom.
        widths: sliding-window width of each layer kind, None for full attention.
        page_size: slots per page.
    """
    windows = Windows.of(plan.windows)
    fed = _sequences(windows)
    spans = fed.spans
    lengths = spans.end - spans.start
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    total = int(offsets[-1])
    padded = round_up(total)
    owners = np.repeat(np.arange(len(spans)), lengths)
    positions = np.arange(total) + np.repeat(spans.start - offsets[:-1], lengths)
    page_tables = _page_tables(fed.page_tables)
    asked = AskedRows(windows, _first_rows(windows, offsets))
    keeping = np.flatnonzero(spans.keep != NO_ROW)
    recalled, remembered = windows.spans.recalling, windows.spans.remembering
    return PackedStep(
        input_ids=_pad(spans.tokens, padded, 0),
        positions=_pad(positions, padded, 0),
        slots=_pad(_slots(spans, positions, owners, page_tables, page_size), padded, -1),
        row_sequence=_pad(owners, padded, 0),
        final=_pad(positions < np.repeat(spans.store_until, lengths), padded, False),
        page_tables=page_tables,
        visibility=tuple(_visibility(fed, pattern, widths, positions, owners)),
        head_rows=asked.head_rows,
        carried=asked.carried,
        guided=asked.guided(),
        sampling=asked.batch(),
        kept_rows=(offsets[:-1] + spans.keep - spans.start)[keeping],
        kept=tuple([fed.request_ids[index] for index in keeping.tolist()]),
        blended=_blended(spans.blends),
        recalled_rows=asked.head_rows[asked.of(recalled)],
        recalled=tuple([windows.request_ids[index] for index in recalled]),
        remembered_rows=asked.of(remembered),
        remembered=asked.counts(remembered),
        refreshes=tuple(_refreshes(fed, offsets, page_size)),
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
    if len(values) == length:
        return values
    padded = np.full(length, fill, dtype=values.dtype)
    padded[: len(values)] = values
    return padded


def _sequences(windows: Windows) -> Windows:
    """The plan's windows, and behind each one of its own for its second sequence, which samples nothing."""
    if all(span.guidance is None for span in windows.spans.special.values()):
        return windows
    fed = []
    for window in windows:
        fed.append(window)
        span = window.span
        if span.guidance is not None:
            assert window.second_table is not None, "guidance needs pages of its own"
            second = attrs.evolve(span, tokens=span.guidance.tokens, groups=(), keep=None, guidance=None)
            fed.append(attrs.evolve(window, span=second, page_table=window.second_table, second_table=None))
    return Windows.of(fed)


def _first_rows(windows: Windows, offsets: IntArray) -> IntArray:
    """[windows] where each of the plan's windows begins, those for second sequences between them."""
    sizes = np.ones(len(windows), dtype=np.int64)
    sizes[[index for index, span in windows.spans.special.items() if span.guidance is not None]] = 2
    first: IntArray = offsets[np.cumsum(sizes) - sizes]
    return first


def _page_tables(tables: Sequence[IntArray]) -> IntArray:
    """[sequences, pages] -1 where a table ends."""
    filled = np.full((len(tables), max(map(len, tables))), -1, dtype=np.int64)
    for row, table in zip(filled, tables, strict=True):
        row[: len(table)] = table
    return filled


def _slots(spans: Spans, positions: IntArray, owners: IntArray, page_tables: IntArray, page_size: int) -> IntArray:
    """[rows] physical slot of each row, -1 where nothing is stored."""
    stored, logical = None, positions
    if (spans.store_from > spans.start).any():
        stored = positions >= spans.store_from[owners]
    packed = {index: span for index, span in spans.special.items() if span.packed is not None}
    if packed:
        shifts = np.zeros(len(spans), dtype=np.int64)
        shifts[[*packed]] = [(span.packed or 0) - span.first_stored for span in packed.values()]
        logical = positions + shifts[owners]
    if stored is not None:
        logical = np.where(stored, logical, 0)
    pages = logical // page_size
    # One index into the flat tables: two would cost three times as much.
    physical = page_tables.ravel().take(owners * page_tables.shape[1] + pages)
    slots: IntArray = (physical - pages) * page_size + logical
    return slots if stored is None else np.where(stored, slots, -1)


def _visibility(
    windows: Windows,
    pattern: AttentionPattern,
    widths: Sequence[int | None],
    positions: IntArray,
    owners: IntArray,
) -> Iterator[Visibility]:
    """The keys of all rows, layer kind by layer kind. The pattern is asked once for all rows of a phase."""
    spans = windows.spans
    lengths = spans.end - spans.start
    last = spans.end.copy()
    for index, span in spans.special.items():
        last[index] = span.slots if span.visible_end is None else span.visible_end
    prompts, finals, ends = (np.repeat(each, lengths) for each in (windows.prompt_lens, spans.store_until, last))
    extents = list[tuple[slice | BoolArray, Extent]]()
    for phase in Phase:
        mine = [each is phase for each in spans.phases]
        if any(mine):
            rows = slice(None) if all(mine) else np.array(mine)[owners]
            extent = Extent(prompt_len=prompts[rows], phase=phase, final_end=finals[rows], end=ends[rows])
            extents.append((rows, extent))
    padded = round_up(len(positions))
    key_end = np.zeros(padded, dtype=np.int64)
    for rows, extent in extents:
        key_end[: len(positions)][rows] = np.minimum(pattern.key_end(positions[rows], extent), extent.end)
    packed = [index for index, span in spans.special.items() if span.packed is not None]
    if packed:
        key_end[: len(positions)] = np.where(np.isin(owners, packed), ends, key_end[: len(positions)])
    for width in widths:
        key_start = np.zeros(padded, dtype=np.int64)
        if width is not None:
            assert not packed, "slots of kept K/V are no positions, so a sliding window cannot find its own"
            for rows, extent in extents:
                key_start[: len(positions)][rows] = pattern.key_start(positions[rows], extent, width)
        yield Visibility(
            key_start=key_start,
            key_end=key_end,
            runs=RowRuns(key_start=key_start, key_end=key_end, row_sequence=owners),
        )


def _refreshes(windows: Windows, offsets: IntArray, page_size: int) -> Iterator[PackedRefresh]:
    for index, span in windows.spans.special.items():
        if span.refresh is not None:
            start, end = offsets[index : index + 2].tolist()
            at = np.arange(span.refresh.keep)
            slots = windows.page_tables[index][at // page_size] * page_size + at % page_size
            yield PackedRefresh(start=start, end=end, slots=slots, refresh=span.refresh)


def _blended(blends: BlendColumns | None) -> BlendedRows | None:
    """The plan's blends, padded."""
    if blends is None:
        return None
    count, padded = len(blends.rows), round_up(len(blends.rows))
    ids = np.zeros((padded, blends.ids.shape[1]), dtype=np.int64)
    weights = np.zeros(ids.shape, dtype=np.float32)
    match_norm = np.zeros(padded, dtype=np.bool_)
    ids[:count], weights[:count], match_norm[:count] = blends.ids, blends.weights, blends.match_norm
    return BlendedRows(rows=blends.rows, ids=ids, weights=weights, match_norm=match_norm)
