"""Packing a step's ragged windows into flat arrays: their rows, and those to sample. Host side only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import attrs
import numpy as np

from diffulex_core.asked_rows import AskedRows, Guided
from diffulex_core.blend_columns import BlendColumns
from diffulex_core.layout import Layout
from diffulex_core.padding import pad, round_up
from diffulex_core.pattern import AttentionPattern, IntArray
from diffulex_core.types import (
    NO_ROW,
    BoolArray,
    FloatArray,
    Refresh,
    SamplingBatch,
    StepPlan,
    Windows,
)


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
        input_ids: [rows] int64; 0 in padding rows.
        layout: where the rows stand and what they see; a window's second sequence follows its first.
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
    layout: Layout
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


def pack(
    plan: StepPlan,
    pattern: AttentionPattern,
    widths: Sequence[int | None],
    page_size: int,
    before: Layout | None = None,
) -> PackedStep:
    """Lay out the rows of `plan`.

    Args:
        plan: at least one window, each with at least one row.
        pattern: who sees whom.
        widths: sliding-window width of each layer kind, None for full attention.
        page_size: slots per page.
        before: as for `Layout.of`.
    """
    windows = Windows.of(plan.windows)
    fed = _sequences(windows)
    layout = Layout.of(fed, pattern, widths, page_size, before=before)
    spans, offsets = fed.spans, layout.offsets
    asked = AskedRows(windows, _first_rows(windows, offsets))
    keeping = np.flatnonzero(spans.keep != NO_ROW)
    recalled, remembered = windows.spans.recalling, windows.spans.remembering
    return PackedStep(
        input_ids=pad(spans.tokens, len(layout.positions), 0),
        layout=layout,
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
