"""How logits become decisions, all rows at once or in parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from diffulex_core.types import Decision, SamplingBatch

if TYPE_CHECKING:
    from torch import Tensor


@runtime_checkable
class Sampler(Protocol):
    """Turns logits into decisions. Pure: it keeps nothing between calls."""

    def sample(self, logits: Tensor, batch: SamplingBatch) -> Sequence[Decision]:
        """Decide all rows of a step at once.

        Args:
            logits: [rows, columns] any float dtype, not modified; see `DiffusionModel.logits` for whose columns.
            batch: whose rows they are.
        Returns:
            One decision for each window of `batch.windows`.
        """
        ...


@runtime_checkable
class PartwiseSampler(Protocol):
    """What a sampler offers besides `Sampler` whose rows may be looked at in parts (`max_logits_tokens`)."""

    def score(self, logits: Tensor, batch: SamplingBatch) -> Tensor:
        """What is to be known of each row, whatever rows are beside it.

        Args:
            logits: [rows, columns] as for `Sampler.sample`.
            batch: a part of a step's batch.
        Returns:
            [facts, rows], on the device.
        """
        ...

    def decide(self, scored: Tensor, batch: SamplingBatch) -> Sequence[Decision]:
        """One decision for each window from the facts of all rows, [facts, rows]."""
        ...


@runtime_checkable
class BelievingSampler(PartwiseSampler, Protocol):
    """What the sampler of a strategy with self-conditioning offers besides `Sampler`."""

    def score_and_believe(self, logits: Tensor, batch: SamplingBatch) -> tuple[Tensor, Tensor]:
        """As `score`, and the logits that are decided from.

        Returns:
            [facts, rows], and [rows, columns] float32 logits after temperature and limits, as
            `SelfConditioned.soft_embeddings` takes them.
        """
        ...
