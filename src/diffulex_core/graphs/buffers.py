"""The inputs of a forward at addresses that never change, filled anew for every step of one shape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NoReturn, overload

import attrs
import torch
from torch import Tensor

from diffulex_core.context import ForwardContext, SoftInputs
from diffulex_core.graphs.buckets import Bucket
from diffulex_core.graphs.capture import NotCapturable
from diffulex_core.types import AttentionBatch, RowRun


class StaticInputs:
    """Ids, positions and context of one bucket.

    Rows that a step does not have are harmless by construction: they store nothing (slot -1) and see nothing ([0, 0)).
    """

    def __init__(self, bucket: Bucket, like: ForwardContext, *, pages: int, live_runs: bool) -> None:
        """
        Args:
            bucket: the shape.
            like: context of a step of this shape: its pages, backend and layer kinds are those of every such step.
            pages: columns of the page tables.
            live_runs: give `AttentionBatch.runs` of the step that is filled in; otherwise to look at them raises
                `NotCapturable`, because a replay would not look again.
        """
        device, kinds = like.slots.device, len(like.batches)
        # One tensor, so that emptying it is one copy.
        self._blank = torch.cat(
            [
                torch.full((bucket.rows,), value, dtype=torch.int64, device=device)
                for value in (0, 0, -1, 0, *(0,) * 2 * kinds)
            ]
            + [torch.full((bucket.sequences * pages,), -1, dtype=torch.int64, device=device)]
        )
        self._numbers = self._blank.clone()
        *columns, tables = self._numbers.split([*(bucket.rows,) * (4 + 2 * kinds), bucket.sequences * pages])
        self.input_ids, self.positions, self._slots, self._row_sequence, *bounds = columns
        self._key_start, self._key_end = bounds[:kinds], bounds[kinds:]
        self._page_tables = tables.view(bucket.sequences, pages)
        self._final = torch.zeros(bucket.rows, dtype=torch.bool, device=device)
        self._soft = _StaticSoft(bucket.rows, like.soft) if bucket.soft and like.soft is not None else None
        self._like = attrs.evolve(like, soft=None, refreshes=())
        self._live_runs = live_runs
        self._runs: tuple[Sequence[RowRun], ...] = tuple(_NoRuns() for _ in range(kinds))

    def serves(self, ctx: ForwardContext) -> bool:
        """Whether a step reads and writes the same pages."""
        return ctx.key_pages is self._like.key_pages and ctx.value_pages is self._like.value_pages

    def fill(self, input_ids: Tensor, positions: Tensor, ctx: ForwardContext) -> None:
        """Take over a step that fits the bucket; nothing of the step before is left."""
        count, batches = len(input_ids), ctx.batches
        tables = batches[0].page_tables
        self._numbers.copy_(self._blank)
        pairs = [
            (self.input_ids, input_ids),
            (self.positions, positions),
            (self._slots, ctx.slots),
            (self._row_sequence, batches[0].row_sequence),
            *((mine, batch.key_start) for mine, batch in zip(self._key_start, batches, strict=True)),
            *((mine, batch.key_end) for mine, batch in zip(self._key_end, batches, strict=True)),
        ]
        torch._foreach_copy_([mine[:count] for mine, _ in pairs], [given for _, given in pairs])
        self._page_tables[: tables.shape[0], : tables.shape[1]] = tables
        self._final.zero_()
        if ctx.final is None:
            self._final[:count] = True
        else:
            self._final[:count] = ctx.final
        if self._soft is not None:
            self._soft.fill(ctx.soft)
        if self._live_runs:
            self._runs = tuple(batch.runs for batch in batches)

    def context(self) -> ForwardContext:
        """The context of the step that was filled in last, over the static tensors."""
        return attrs.evolve(
            self._like,
            slots=self._slots,
            batches=tuple(
                AttentionBatch(
                    key_start=key_start,
                    key_end=key_end,
                    row_sequence=self._row_sequence,
                    page_tables=self._page_tables,
                    page_size=batch.page_size,
                    runs=runs,
                )
                for key_start, key_end, batch, runs in zip(
                    self._key_start, self._key_end, self._like.batches, self._runs, strict=True
                )
            ),
            final=self._final,
            soft=None if self._soft is None else self._soft.inputs(),
        )


class _StaticSoft:
    """Embeddings for every row, and which rows they count for."""

    def __init__(self, rows: int, like: SoftInputs) -> None:
        self._embeddings = like.embeddings.new_zeros(rows, like.embeddings.shape[1])
        self._fed = torch.zeros(rows, 1, dtype=torch.bool, device=like.rows.device)
        self._rows = torch.arange(rows, device=like.rows.device)

    def fill(self, soft: SoftInputs | None) -> None:
        self._fed.zero_()
        if soft is not None:
            self._embeddings.index_copy_(0, soft.rows, soft.embeddings)
            self._fed.index_fill_(0, soft.rows, True)

    def inputs(self) -> SoftInputs:
        return SoftInputs(rows=self._rows, embeddings=self._embeddings, fed=self._fed)


class _NoRuns(Sequence[RowRun]):
    """Stands where runs of rows would be; a backend that looks at them cannot be captured."""

    def __len__(self) -> int:
        return self._refuse()

    @overload
    def __getitem__(self, index: int) -> RowRun: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[RowRun]: ...
    def __getitem__(self, index: int | slice) -> RowRun | Sequence[RowRun]:
        return self._refuse()

    def __iter__(self) -> Iterator[RowRun]:
        return self._refuse()

    def _refuse(self) -> NoReturn:
        raise NotCapturable("the attention backend lays out runs of rows on the host (AttentionBatch.runs)")
