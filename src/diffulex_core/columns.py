"""The spans and windows of a step, column by column: a step touches arrays, and single ones are made when read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from itertools import accumulate, chain
from typing import NamedTuple, overload

import attrs
import numpy as np

from diffulex_core.blend_columns import BlendColumns
from diffulex_core.pattern import IntArray, Phase
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.spans import BoolArray, SampleGroups, Span, Window

NO_ROW = -1
"""Stands for `Span.keep` None among numbers."""


class Outline(NamedTuple):
    """The numbers of a span, before anything is copied for it; each is named as in `Span`, and `keep` may be `NO_ROW`.

    It is a span of whole blocks that advances its request. Beyond what every `Span` says, it may feed blends, recall
    and remember.
    """

    start: int
    end: int
    catch_up: int
    store_from: int
    store_until: int
    keep: int

    @property
    def rows(self) -> int:
        """As `Span.rows`."""
        return self.end - self.start

    @property
    def slots(self) -> int:
        """As `Span.slots`."""
        return self.end

    @property
    def held(self) -> None:
        """As `Span.held`."""
        return None

    @property
    def full_pass(self) -> bool:
        """As `Span.full_pass`."""
        return False


@attrs.frozen(kw_only=True, eq=False)
class Spans(Sequence[Span]):
    """The spans of several requests.

    Attributes:
        numbers: [6, spans] int64: what an `Outline` says, row by row.
        phases, advances: of each span.
        tokens: [rows] of all spans, one after another.
        groups: of all spans, one after another.
        counts, asked: groups of each span, and positions in them.
        blends: the rows of all spans that are fed blended embeddings; None = no row is.
        beliefs: [2, spans] bool: which of them recall, and which remember; None = none does either.
        special: by index the spans that say more than that.
        given: the same as they were given one by one; None = they are made of the columns when they are read.
    """

    numbers: IntArray
    phases: Sequence[Phase]
    advances: Sequence[bool]
    tokens: IntArray
    groups: SampleGroups
    counts: Sequence[int]
    asked: Sequence[int]
    blends: BlendColumns | None = None
    beliefs: BoolArray | None = None
    special: Mapping[int, Span] = attrs.field(factory=dict)
    given: tuple[Span, ...] | None = None

    @classmethod
    def of(cls, spans: Iterable[Span]) -> Spans:
        """The columns of some spans."""
        each = tuple(spans)
        outlines = [
            (s.start, s.end, s.catch_up, s.store_from, s.store_until, NO_ROW if s.keep is None else s.keep)
            for s in each
        ]
        return cls(
            numbers=np.array(outlines, dtype=np.int64).reshape(-1, len(Outline._fields)).T,
            phases=[span.phase for span in each],
            advances=[span.advances for span in each],
            tokens=np.concatenate([np.empty(0, dtype=np.int64), *(span.tokens for span in each)]),
            groups=SampleGroups.joined([span.groups for span in each]),
            counts=[len(span.groups) for span in each],
            asked=[len(span.groups.positions) for span in each],
            blends=BlendColumns.of(each),
            beliefs=_beliefs([(span.recall, span.remember) for span in each]),
            special={index: span for index, span in enumerate(each) if not span.plain},
            given=each,
        )

    @classmethod
    def joined(cls, parts: Sequence[Spans]) -> Spans:
        """Those of at least one part, one part after another."""
        if len(parts) == 1:
            return parts[0]
        firsts = accumulate(map(len, parts), initial=0)
        rows = accumulate((len(part.tokens) for part in parts), initial=0)
        return cls(
            numbers=np.concatenate([part.numbers for part in parts], axis=1),
            phases=[*chain.from_iterable(part.phases for part in parts)],
            advances=[*chain.from_iterable(part.advances for part in parts)],
            tokens=np.concatenate([part.tokens for part in parts]),
            groups=SampleGroups.joined([part.groups for part in parts]),
            counts=[*chain.from_iterable(part.counts for part in parts)],
            asked=[*chain.from_iterable(part.asked for part in parts)],
            blends=BlendColumns.joined(
                [(before, part.blends) for before, part in zip(rows, parts, strict=False) if part.blends is not None]
            ),
            beliefs=_joined_beliefs(parts),
            special={
                first + at: span
                for first, part in zip(firsts, parts, strict=False)
                for at, span in part.special.items()
            },
        )

    def some(self, indices: Sequence[int]) -> Spans:
        """Those at some of the indices, ascending."""
        return self if len(indices) == len(self) else Spans.of([self[index] for index in indices])

    @property
    def start(self) -> IntArray:
        """[spans] first positions."""
        return self._of_each("start")

    @property
    def end(self) -> IntArray:
        """[spans] positions after the last."""
        return self._of_each("end")

    @property
    def catch_up(self) -> IntArray:
        """[spans] leading rows whose tokens are final."""
        return self._of_each("catch_up")

    @property
    def store_from(self) -> IntArray:
        """[spans] rows of positions below it store nothing."""
        return self._of_each("store_from")

    @property
    def store_until(self) -> IntArray:
        """[spans] K/V of positions below it are final afterwards."""
        return self._of_each("store_until")

    @property
    def keep(self) -> IntArray:
        """[spans] positions whose hidden rows are kept, or `NO_ROW`."""
        return self._of_each("keep")

    def _of_each(self, field: str) -> IntArray:
        column: IntArray = self.numbers[Outline._fields.index(field)]
        return column

    @property
    def recalling(self) -> list[int]:
        """Indices of the spans that recall."""
        return [] if self.beliefs is None else np.flatnonzero(self.beliefs[0]).tolist()

    @property
    def remembering(self) -> list[int]:
        """Indices of the spans that remember."""
        return [] if self.beliefs is None else np.flatnonzero(self.beliefs[1]).tolist()

    @property
    def rows(self) -> int:
        """Rows that are fed, those of second sequences included."""
        return len(self.tokens) + sum(span.rows - len(span.tokens) for span in self.special.values())

    def __len__(self) -> int:
        return len(self.counts)

    @overload
    def __getitem__(self, index: int) -> Span: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Span]: ...
    def __getitem__(self, index: int | slice) -> Span | Sequence[Span]:
        return self._each[index]

    @cached_property
    def _each(self) -> tuple[Span, ...]:
        if self.given is not None:
            return self.given
        bounds = [
            [*accumulate(sizes, initial=0)] for sizes in ((self.end - self.start).tolist(), self.counts, self.asked)
        ]
        return tuple(self.special.get(at) or self._made(at, *bounds) for at in range(len(self)))

    def _made(self, index: int, rows: list[int], groups: list[int], asked: list[int]) -> Span:
        """One span; the others are where the bounds of rows, groups and positions say."""
        start, _, catch_up, store_from, store_until, keep = self.numbers[:, index].tolist()
        own, of_groups, of_positions = (slice(*bounds[index : index + 2]) for bounds in (rows, groups, asked))
        return Span(
            start=start,
            tokens=self.tokens[own],
            catch_up=catch_up,
            store_from=store_from,
            store_until=store_until,
            keep=None if keep == NO_ROW else keep,
            phase=self.phases[index],
            groups=self.groups.part(of_groups, of_positions),
            advances=self.advances[index],
            blends=None if self.blends is None else self.blends.within(own.start, own.stop, start),
            recall=self.beliefs is not None and bool(self.beliefs[0, index]),
            remember=self.beliefs is not None and bool(self.beliefs[1, index]),
        )


@attrs.frozen(kw_only=True, eq=False)
class Windows(Sequence[Window]):
    """The windows of a plan.

    Attributes:
        spans: their spans.
        request_ids, prompt_lens, page_tables, params, draws, preemptions: of each, as in `Window`.
        second_tables: by index, of those that have one.
        given: as in `Spans`.
    """

    spans: Spans
    request_ids: Sequence[int]
    prompt_lens: Sequence[int]
    page_tables: Sequence[IntArray]
    params: Sequence[SamplingParams]
    draws: Sequence[int]
    preemptions: Sequence[int]
    second_tables: Mapping[int, IntArray] = attrs.field(factory=dict)
    given: tuple[Window, ...] | None = None

    @classmethod
    def of(cls, windows: Iterable[Window]) -> Windows:
        """The columns of some windows; the same object where they are columns already."""
        if isinstance(windows, Windows):
            return windows
        each = tuple(windows)
        return cls(
            spans=Spans.of([window.span for window in each]),
            request_ids=[window.request_id for window in each],
            prompt_lens=[window.prompt_len for window in each],
            page_tables=[window.page_table for window in each],
            params=[window.params for window in each],
            draws=[window.draw for window in each],
            preemptions=[window.preemptions for window in each],
            second_tables={at: w.second_table for at, w in enumerate(each) if w.second_table is not None},
            given=each,
        )

    def __len__(self) -> int:
        return len(self.request_ids)

    @overload
    def __getitem__(self, index: int) -> Window: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Window]: ...
    def __getitem__(self, index: int | slice) -> Window | Sequence[Window]:
        return self._each[index]

    def __reduce__(self) -> tuple[Callable[..., Windows], tuple[object, ...]]:
        """Windows that were given travel alone; their columns are made anew."""
        if self.given is not None:
            return Windows.of, (self.given,)
        fields = attrs.asdict(self, recurse=False, filter=lambda field, _: field.name != "given")
        return partial(Windows, **fields), ()

    @cached_property
    def _each(self) -> tuple[Window, ...]:
        if self.given is not None:
            return self.given
        columns = (self.request_ids, self.spans, self.prompt_lens, self.page_tables, self.params, self.draws)
        return tuple(
            Window(
                request_id=request_id,
                span=span,
                prompt_len=prompt_len,
                page_table=page_table,
                params=params,
                draw=draw,
                second_table=self.second_tables.get(at),
                preemptions=self.preemptions[at],
            )
            for at, (request_id, span, prompt_len, page_table, params, draw) in enumerate(zip(*columns, strict=True))
        )


def _beliefs(each: Sequence[tuple[bool, bool]]) -> BoolArray | None:
    """[2, spans] of pairs; None where all of them are False."""
    return np.array(each, dtype=np.bool_).T if any(map(any, each)) else None


def _joined_beliefs(parts: Sequence[Spans]) -> BoolArray | None:
    if all(part.beliefs is None for part in parts):
        return None
    return np.concatenate(
        [np.zeros((2, len(part)), dtype=np.bool_) if part.beliefs is None else part.beliefs for part in parts], axis=1
    )
