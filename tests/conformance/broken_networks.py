"""Decoders that are broken, each in one way."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import Tensor

from diffulex_core.context import ForwardContext
from diffulex_core.layers.decoder import Decoder
from diffulex_core.types import AttentionBatch
from tests.conformance.broken_families import Misled


def _real(batch: AttentionBatch) -> Tensor:
    """[rows] which rows see anything; the others are padding."""
    return batch.key_end > batch.key_start


class OneKeyTooMany(Misled):
    def batch(self, positions: Tensor, batch: AttentionBatch) -> AttentionBatch:
        return attrs.evolve(batch, key_end=batch.key_end + _real(batch))


class OneKeyTooFew(Misled):
    def batch(self, positions: Tensor, batch: AttentionBatch) -> AttentionBatch:
        return attrs.evolve(batch, key_end=batch.key_end - _real(batch).long())


class BeginsOneLate(Misled):
    def batch(self, positions: Tensor, batch: AttentionBatch) -> AttentionBatch:
        return attrs.evolve(batch, key_start=batch.key_start + (_real(batch) & (batch.key_start > 0)))


class SeesFromTheStart(Misled):
    def batch(self, positions: Tensor, batch: AttentionBatch) -> AttentionBatch:
        return attrs.evolve(batch, key_start=torch.zeros_like(batch.key_start))


class OwnCausalMask(Misled):
    def batch(self, positions: Tensor, batch: AttentionBatch) -> AttentionBatch:
        return attrs.evolve(batch, key_end=torch.minimum(batch.key_end, positions + 1))


class OwnWindow(Misled):
    """Heeds a sliding window of its own, of which the engine knows nothing."""

    def batch(self, positions: Tensor, batch: AttentionBatch) -> AttentionBatch:
        return attrs.evolve(batch, key_start=torch.maximum(batch.key_start, positions - 3).minimum(batch.key_end))


class WindowOfNobody(Decoder):
    """Declares sliding layers, but all layers see everything."""

    @property
    def windows(self) -> tuple[int | None, ...]:
        return (None, 5)


class AssumesPagesInOrder(Misled):
    def batch(self, positions: Tensor, batch: AttentionBatch) -> AttentionBatch:
        tables = batch.page_tables
        count = torch.arange(tables.shape[1])
        return attrs.evolve(batch, page_tables=torch.where(tables < 0, tables, tables[:, :1] + count))


class FillsTablesFromTheBatch(Misled):
    """Reads the first sequence's pages for all."""

    def batch(self, positions: Tensor, batch: AttentionBatch) -> AttentionBatch:
        return attrs.evolve(batch, row_sequence=torch.zeros_like(batch.row_sequence))


class RotatesByPlaceInTheForward(Misled):
    def positions(self, positions: Tensor, ctx: ForwardContext) -> Tensor:
        return positions - positions[0]


class OffByOneWhileDecoding(Misled):
    def positions(self, positions: Tensor, ctx: ForwardContext) -> Tensor:
        return positions + bool(positions[0] > 0)


class IgnoresPositions(Misled):
    def positions(self, positions: Tensor, ctx: ForwardContext) -> Tensor:
        return torch.zeros_like(positions)


class TakesSlotsForPositions(Misled):
    """Counts keys instead of reading positions."""

    def positions(self, positions: Tensor, ctx: ForwardContext) -> Tensor:
        return torch.minimum(ctx.batches[0].key_end - 1, ctx.slots.clamp(min=0))


class WritesNegativeSlots(Misled):
    """Leaves out the mask of rows that store nothing: -1 is the last slot."""

    def told(self, positions: Tensor, ctx: ForwardContext) -> ForwardContext:
        last = ctx.key_pages[0].shape[0] * ctx.key_pages[0].shape[1] - 1
        return attrs.evolve(ctx, slots=torch.where(ctx.slots < 0, last, ctx.slots))


class WritesTheNextSlot(Misled):
    def told(self, positions: Tensor, ctx: ForwardContext) -> ForwardContext:
        last = ctx.key_pages[0].shape[0] * ctx.key_pages[0].shape[1] - 1
        return attrs.evolve(ctx, slots=torch.where(ctx.slots < 0, -1, (ctx.slots + 1).clamp(max=last)))


class StoresOnlyFinalRows(Misled):
    def told(self, positions: Tensor, ctx: ForwardContext) -> ForwardContext:
        assert ctx.final is not None
        return attrs.evolve(ctx, slots=torch.where(ctx.final, ctx.slots, -1))


class KeepsWhatWasStoredFirst(Misled):
    """Does not overwrite a block's K/V when the block is fed again."""

    def told(self, positions: Tensor, ctx: ForwardContext) -> ForwardContext:
        stored = ctx.key_pages[-1].flatten(0, 1)[ctx.slots].flatten(1)
        taken = (stored != 0).any(1) & stored.isfinite().all(1)
        return attrs.evolve(ctx, slots=torch.where(taken, -1, ctx.slots))


class After(Decoder):
    """A decoder that changes its hidden rows at the end."""

    def forward(self, input_ids: Tensor, positions: Tensor, ctx: ForwardContext) -> Tensor:
        return self.after(super().forward(input_ids, positions, ctx), ctx)

    def after(self, hidden: Tensor, ctx: ForwardContext) -> Tensor:
        raise NotImplementedError


class CentresTheBatch(After):
    def after(self, hidden: Tensor, ctx: ForwardContext) -> Tensor:
        return hidden - 0.1 * hidden.mean(0, keepdim=True)


class AddsTheRowBefore(After):
    """A convolution over rows, whoever they belong to."""

    def after(self, hidden: Tensor, ctx: ForwardContext) -> Tensor:
        return hidden + 0.1 * hidden.roll(1, dims=0)


class CountsRows(After):
    """Depends on the number of rows, padding included."""

    def after(self, hidden: Tensor, ctx: ForwardContext) -> Tensor:
        return hidden * (1 + 0.01 * len(hidden))


class ReadsAllPages(After):
    def after(self, hidden: Tensor, ctx: ForwardContext) -> Tensor:
        return hidden + 0.1 * ctx.value_pages[0].mean()


class PeeksAtAllPages(After):
    """As before, and hides what is not finite."""

    def after(self, hidden: Tensor, ctx: ForwardContext) -> Tensor:
        return hidden + 0.1 * ctx.value_pages[0].nan_to_num(0.0).mean()


class CleansPages(After):
    """Clears the slots behind the last one that it was given."""

    def after(self, hidden: Tensor, ctx: ForwardContext) -> Tensor:
        ctx.key_pages[0].flatten(0, 1)[int(ctx.slots.max()) + 1 :] = 0
        return hidden


class Averages(After):
    """A running mean, as normalisation in training has it."""

    running: Tensor | None = None

    def after(self, hidden: Tensor, ctx: ForwardContext) -> Tensor:
        mean = hidden.mean(0) if self.running is None else 0.9 * self.running + 0.1 * hidden.mean(0)
        self.running = mean
        return hidden - 0.1 * mean


class RemembersByShape(Decoder):
    """Believes that the same number of rows is the same question."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.known: dict[int, Tensor] = {}

    def forward(self, input_ids: Tensor, positions: Tensor, ctx: ForwardContext) -> Tensor:
        hidden = super().forward(input_ids, positions, ctx)
        return self.known.setdefault(len(input_ids), hidden)


_ANSWERS: dict[int, Tensor] = {}


class RemembersForAll(Decoder):
    """As before, in a place that all networks share."""

    def forward(self, input_ids: Tensor, positions: Tensor, ctx: ForwardContext) -> Tensor:
        hidden = super().forward(input_ids, positions, ctx)
        return _ANSWERS.setdefault(len(input_ids), hidden)


class DriftsAway(After):
    def after(self, hidden: Tensor, ctx: ForwardContext) -> Tensor:
        self.final_norm.weight.data[0] += 1e-7
        return hidden


class CountsPositionsUp(Decoder):
    """Changes its argument."""

    def forward(self, input_ids: Tensor, positions: Tensor, ctx: ForwardContext) -> Tensor:
        hidden = super().forward(input_ids, positions, ctx)
        positions += 1
        return hidden


class ScalesHiddenInPlace(Decoder):
    def logits(self, hidden: Tensor) -> Tensor:
        return super().logits(hidden.mul_(0.5))


class CentresTheHead(Decoder):
    def logits(self, hidden: Tensor) -> Tensor:
        logits = super().logits(hidden)
        return logits - logits.mean(0, keepdim=True)


class PadsTheHead(Decoder):
    """Has more columns than it says."""

    def logits(self, hidden: Tensor) -> Tensor:
        return torch.nn.functional.pad(super().logits(hidden), (0, 3))
