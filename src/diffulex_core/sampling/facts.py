"""What of a row's distribution suffices to decide it greedily, so that its logits need not exist all at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar, runtime_checkable

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from diffulex_core.pattern import IntArray
from diffulex_core.transfer import on_device
from diffulex_core.types import BoolArray, Decision, FloatArray, SamplingBatch

T = TypeVar("T", bound=np.generic)

MOST_TOP = 64
"""Most of a row's largest values that can be wanted."""


@attrs.frozen(kw_only=True, eq=False)
class Wanted:
    """Which columns count, and what is to be known of them.

    What is said row by row may be said of the first rows only; nothing of it holds for those behind.

    Attributes:
        columns: the first so many of this process's columns are real ids; the others mean nothing.
        excluded: columns that are never chosen and have no share, ascending.
        second: whether the second largest value is wanted.
        entropy: whether the negative entropy is wanted.
        top: so many of the largest values, at most `MOST_TOP`.
        lowered: [rows] int64 column whose value is lowered before anything else, -1 for none; None = nowhere.
        penalty: [rows] float32 by how much; None = nowhere.
        watched: [rows, n] int64 columns whose values are wanted as they are, -1 for none; None = nowhere.
    """

    columns: int
    excluded: tuple[int, ...] = ()
    second: bool = False
    entropy: bool = False
    top: int = 0
    lowered: IntArray | None = None
    penalty: FloatArray | None = None
    watched: IntArray | None = None

    def of_rows(self, rows: int) -> Wanted:
        """The same, said of exactly so many rows."""
        lowered, penalty, watched = self.lowered, self.penalty, self.watched
        return attrs.evolve(
            self,
            lowered=None if lowered is None else _lengthened(lowered, rows),
            penalty=None if penalty is None else _lengthened(penalty, rows),
            watched=None if watched is None else _lengthened(watched, rows),
        )


def _lengthened(values: NDArray[T], rows: int) -> NDArray[T]:
    whole = np.full((rows, *values.shape[1:]), -1, dtype=values.dtype)
    whole[: len(values)] = values
    return whole


@attrs.frozen(kw_only=True, eq=False)
class Facts:
    """Some rows' distributions over the columns of one process, in a few numbers each.

    Attributes:
        best: [rows] float32 largest value; minus infinity where no column is possible.
        column: [rows] int64 where it stands, the highest of equals; 0 where no column is possible.
        log_sum: [rows] float64 logarithm of the sum of exponentials; not finite where the row holds NaN or infinity, or
            where no column is possible.
        second: [rows] float32 largest value besides the one at `column`, equal to it where there are two; minus
            infinity where no other column is possible. None where it is not wanted.
        entropy: [rows] float32 sum of p ln p, at most 0, where p is normalised over these columns. None where it is
            not wanted.
        top: [rows, k] float32 largest values, the largest first; minus infinity where fewer columns are possible. None
            where they are not wanted.
        top_columns: [rows, k] int64 where they stand, equals from the highest down; 0 where none is possible.
        watched: [rows, n] float32 values of the watched columns, not lowered, even of those that are excluded; minus
            infinity where none of the first `Wanted.columns` is watched. None where nothing is.
    """

    best: Tensor
    column: Tensor
    log_sum: Tensor
    second: Tensor | None = None
    entropy: Tensor | None = None
    top: Tensor | None = None
    top_columns: Tensor | None = None
    watched: Tensor | None = None

    def first(self, rows: int) -> Facts:
        """Those of the first rows."""

        def few(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[:rows]

        return Facts(
            best=self.best[:rows],
            column=self.column[:rows],
            log_sum=self.log_sum[:rows],
            second=few(self.second),
            entropy=few(self.entropy),
            top=few(self.top),
            top_columns=few(self.top_columns),
            watched=few(self.watched),
        )


@runtime_checkable
class SelectingNetwork(Protocol):
    """What a network offers besides `DiffusionModel` whose head may be run without keeping logits."""

    @property
    def columns(self) -> int:
        """Columns of the head that this process holds, padding included."""
        ...

    @property
    def selects(self) -> bool:
        """Whether `select` is better here than `logits`, as the layers and adapters are now."""
        ...

    def select(self, hidden: Tensor, wanted: Wanted) -> Facts:
        """The facts of `logits(hidden)`.

        Args:
            hidden: [rows, hidden].
            wanted: `columns` and `excluded` are those of this process.
        """
        ...


@runtime_checkable
class SelectingSampler(Protocol):
    """What a sampler offers besides `Sampler` that can decide rows by their facts, others by their logits."""

    def selectable(self, batch: SamplingBatch) -> BoolArray:
        """[rows] rows that facts suffice for, also for all that is asked of them besides a token and its confidence."""
        ...

    def wanted(self, columns: int, batch: SamplingBatch) -> Wanted:
        """What must be known of selectable rows.

        Args:
            columns: that this process holds, padding included.
            batch: with these rows only.
        """
        ...

    def score_facts(self, facts: Facts, columns: int, batch: SamplingBatch) -> Tensor:
        """As `PartwiseSampler.score`, from the facts of the batch's rows.

        Args:
            facts: as `wanted` for the same batch says.
            columns: as there.
        """
        ...

    def score(self, logits: Tensor, batch: SamplingBatch) -> Tensor:
        """See `PartwiseSampler`."""
        ...

    def decide(self, scored: Tensor, batch: SamplingBatch) -> Sequence[Decision]:
        """See `PartwiseSampler`."""
        ...


def facts_of(logits: Tensor, wanted: Wanted) -> Facts:
    """The definition.

    Args:
        logits: [rows, columns] any float dtype, not modified.
        wanted: what is to be known of them.
    """
    wanted = wanted.of_rows(len(logits))
    scores = logits.to(torch.float32, copy=True)
    scores[:, wanted.columns :] = -torch.inf
    watched = None if wanted.watched is None else _values_at(scores, wanted.watched)
    if wanted.lowered is not None and wanted.penalty is not None:
        rows = np.flatnonzero((wanted.lowered >= 0) & (wanted.lowered < scores.shape[1]))
        at = on_device(rows, scores.device), on_device(wanted.lowered[rows], scores.device)
        scores[at] -= on_device(wanted.penalty[rows], scores.device, torch.float32)
    scores.index_fill_(1, on_device(wanted.excluded, scores.device, torch.int64), -torch.inf)
    best = scores.amax(dim=1)
    columns = torch.arange(scores.shape[1], device=scores.device)
    column = torch.where((scores == best[:, None]) & (scores > -torch.inf), columns, 0).amax(dim=1)
    base = best.masked_fill(best == -torch.inf, 0.0)
    shifted = scores - base[:, None]
    exps = shifted.exp()
    total = exps.sum(dim=1)
    log_sum = base.double() + total.double().log()
    second = entropy = top = top_columns = None
    if wanted.second:
        others = scores.masked_fill(columns == column[:, None], -torch.inf)
        second = others.amax(dim=1)
    if wanted.entropy:
        weighted = (exps * shifted.masked_fill(scores == -torch.inf, 0.0)).sum(dim=1)
        entropy = torch.where(total > 0, weighted / total - total.log(), 0.0)
    if wanted.top:
        top, top_columns = _largest(scores, wanted.top)
    return Facts(
        best=best,
        column=column,
        log_sum=log_sum,
        second=second,
        entropy=entropy,
        top=top,
        top_columns=top_columns,
        watched=watched,
    )


def _values_at(scores: Tensor, columns: IntArray) -> Tensor:
    """[rows, n] the scores at columns [rows, n], minus infinity where there is no such column."""
    at = on_device(columns, scores.device)
    missing = (at < 0) | (at >= scores.shape[1])
    return scores.gather(1, at.masked_fill(missing, 0)).masked_fill(missing, -torch.inf)


def _largest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """[rows, count] the largest scores and their columns, equals from the highest column down."""
    ordered = scores.flip(1).sort(dim=1, descending=True, stable=True)
    values = ordered.values[:, :count]
    columns = (scores.shape[1] - 1 - ordered.indices[:, :count]).masked_fill(values == -torch.inf, 0)
    missing = (0, count - values.shape[1])
    return functional.pad(values, missing, value=-torch.inf), functional.pad(columns, missing)
