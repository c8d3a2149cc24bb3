"""What of a row's distribution suffices to decide it greedily, so that its logits need not exist all at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import attrs
import torch
from torch import Tensor

from diffulex_core.types import BoolArray, Decision, SamplingBatch


@attrs.frozen(kw_only=True, eq=False)
class Wanted:
    """Which columns count, and what is to be known of them.

    Attributes:
        columns: the first so many of this process's columns are real ids; the others mean nothing.
        excluded: columns that are never chosen and have no share, ascending.
        second: whether the second largest value is wanted.
        entropy: whether the negative entropy is wanted.
    """

    columns: int
    excluded: tuple[int, ...] = ()
    second: bool = False
    entropy: bool = False


@attrs.frozen(kw_only=True, eq=False)
class Facts:
    """Some rows' distributions over the columns of one process, in a few numbers each.

    Attributes:
        best: [rows] float32 largest value; minus infinity where no column is possible.
        column: [rows] int64 where it stands, the highest of equals.
        log_sum: [rows] float64 logarithm of the sum of exponentials; not finite where the row holds NaN or infinity, or
            where no column is possible.
        second: [rows] float32 largest value besides the one at `column`, equal to it where there are two; minus
            infinity where no other column is possible. None where it is not wanted.
        entropy: [rows] float32 sum of p ln p, at most 0, where p is normalised over these columns. None where it is
            not wanted.
    """

    best: Tensor
    column: Tensor
    log_sum: Tensor
    second: Tensor | None = None
    entropy: Tensor | None = None

    def first(self, rows: int) -> Facts:
        """Those of the first rows."""
        return Facts(
            best=self.best[:rows],
            column=self.column[:rows],
            log_sum=self.log_sum[:rows],
            second=None if self.second is None else self.second[:rows],
            entropy=None if self.entropy is None else self.entropy[:rows],
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
        """[rows] rows that facts suffice for; none where anybody asks for more than a token and its confidence."""
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


def facts_of(logits: Tensor, wanted: Wanted, *, start: int = 0) -> Facts:
    """The definition: facts of some columns of a head, beginning at column `start`.

    Args:
        logits: [rows, columns] any float dtype, not modified.
        wanted: counted from the head's first column, as is `Facts.column`.
    """
    scores = logits.to(torch.float32, copy=True)
    scores[:, max(0, wanted.columns - start) :] = -torch.inf
    inside = [column - start for column in wanted.excluded if 0 <= column - start < scores.shape[1]]
    scores[:, inside] = -torch.inf
    best = scores.amax(dim=1)
    columns = torch.arange(start, start + scores.shape[1], device=scores.device)
    column = torch.where(scores == best[:, None], columns, start).amax(dim=1)
    base = best.masked_fill(best == -torch.inf, 0.0)
    shifted = scores - base[:, None]
    exps = shifted.exp()
    total = exps.sum(dim=1)
    log_sum = base.double() + total.double().log()
    second = entropy = None
    if wanted.second:
        others = scores.masked_fill(columns == column[:, None], -torch.inf)
        second = others.amax(dim=1)
    if wanted.entropy:
        weighted = (exps * shifted.masked_fill(scores == -torch.inf, 0.0)).sum(dim=1)
        entropy = torch.where(total > 0, weighted / total - total.log(), 0.0)
    return Facts(best=best, column=column, log_sum=log_sum, second=second, entropy=entropy)


def joined(parts: Sequence[Facts]) -> Facts:
    """Facts of consecutive columns put together, in the order of the columns."""
    best = torch.stack([part.best for part in parts])
    columns = torch.stack([part.column for part in parts])
    logs = torch.stack([part.log_sum for part in parts])
    top = best.amax(dim=0)
    column = torch.where(best == top, columns, 0).amax(dim=0)
    log_sum = logs.logsumexp(dim=0)
    second = entropy = None
    seconds = [part.second for part in parts if part.second is not None]
    if seconds:
        beside = best.masked_fill(columns == column, -torch.inf)
        second = torch.cat((beside, torch.stack(seconds))).amax(dim=0)
    entropies = [part.entropy for part in parts if part.entropy is not None]
    if entropies:
        shares = (logs - log_sum).exp()
        each = torch.where(shares > 0, shares * torch.stack(entropies), 0.0) + torch.xlogy(shares, shares)
        entropy = each.sum(dim=0).float()
    return Facts(best=top, column=column, log_sum=log_sum, second=second, entropy=entropy)
