"""Where the rows of a step stand, and what they see, whatever their tokens are. Host side only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import attrs
import numpy as np

from diffulex_core.padding import pad, round_up
from diffulex_core.pattern import AttentionPattern, Extent, IntArray, Phase
from diffulex_core.types import BoolArray, RowRuns, Spans, Windows


@attrs.frozen(kw_only=True, eq=False)
class Visibility:
    """Key intervals of all rows for one layer kind: [rows] start and exclusive end, and the same as runs of rows."""

    key_start: IntArray
    key_end: IntArray
    runs: RowRuns


@attrs.frozen(kw_only=True, eq=False)
class Layout:
    """Of the rows of some sequences, padded to `ROW_MULTIPLE`.

    Attributes:
        offsets: [sequences + 1] int64 where the rows of each begin, and where the last one's end.
        positions: [rows] int64; 0 in padding rows.
        slots: [rows] int64 physical slot of each row's K/V; -1 in padding rows and in rows that store nothing.
        row_sequence: [rows] int64 index of the row's sequence; 0 in padding rows.
        final: [rows] bool: the row's K/V will not change again; False in padding rows.
        page_tables: [sequences, pages] int64, -1 where a table ends.
        visibility: one entry for each layer kind.
    """

    offsets: IntArray
    positions: IntArray
    slots: IntArray
    row_sequence: IntArray
    final: BoolArray
    page_tables: IntArray
    visibility: tuple[Visibility, ...]
    _numbers: IntArray = attrs.field(alias="numbers")
    _phases: Sequence[Phase] = attrs.field(alias="phases")
    _prompt_lens: Sequence[int] = attrs.field(alias="prompt_lens")
    _plain: bool = attrs.field(alias="plain")

    @classmethod
    def of(
        cls,
        fed: Windows,
        pattern: AttentionPattern,
        widths: Sequence[int | None],
        page_size: int,
        *,
        before: Layout | None,
    ) -> Layout:
        """The layout of what is fed.

        Args:
            fed: at least one sequence, each with at least one row.
            pattern: who sees whom.
            widths: sliding-window width of each layer kind, None for full attention.
            page_size: slots per page.
            before: made with the same pattern, widths and page size; it is returned where it is this layout, too, as in
                steps that change tokens only.
        """
        page_tables = _page_tables(fed.page_tables)
        if before is not None and before.fits(fed, page_tables):
            return before
        spans = fed.spans
        lengths = spans.end - spans.start
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        total = int(offsets[-1])
        padded = round_up(total)
        owners = np.repeat(np.arange(len(spans)), lengths)
        positions = np.arange(total) + np.repeat(spans.start - offsets[:-1], lengths)
        return cls(
            offsets=offsets,
            positions=pad(positions, padded, 0),
            slots=pad(_slots(spans, positions, owners, page_tables, page_size), padded, -1),
            row_sequence=pad(owners, padded, 0),
            final=pad(positions < np.repeat(spans.store_until, lengths), padded, False),
            page_tables=page_tables,
            visibility=tuple(_visibility(fed, pattern, widths, positions, owners)),
            # Copies: who made the columns may write into them for the next step.
            numbers=spans.numbers.copy(),
            phases=[*spans.phases],
            prompt_lens=[*fed.prompt_lens],
            plain=not spans.special,
        )

    def fits(self, fed: Windows, page_tables: IntArray) -> bool:
        """Whether it is that of other sequences, too, made with the same pattern, widths and page size.

        Args:
            fed: as for `of`. Where one says more than an `Outline`, the answer is no.
            page_tables: theirs, as in a layout.
        """
        spans = fed.spans
        return (
            self._plain
            and not spans.special
            and np.array_equal(spans.numbers, self._numbers)
            and spans.phases == self._phases
            and fed.prompt_lens == self._prompt_lens
            and np.array_equal(page_tables, self.page_tables)
        )


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
