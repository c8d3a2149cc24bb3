"""Samplers, schedulers and networks that are wrong in one way each, as parts of whole engines."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random, getrandbits
from typing import Any, ClassVar

import attrs
import torch
from torch import Tensor, nn

from diffulex_core.context import BuildContext, ForwardContext
from diffulex_core.protocols import DiffusionModel
from diffulex_core.sampling import PackedSampler
from diffulex_core.scheduler import ContinuousScheduler
from diffulex_core.testing.reference import model
from diffulex_core.types import CompletionReason, Decision, SamplingBatch

TINY: Mapping[str, Any] = {
    **model.TINY, "architectures": ["MutantForMaskedLM"], "vocab_size": 120, "mask_token_id": 5, "eos_token_id": 6,
}  # fmt: skip
"""The kit's config.json with a mask token among the others and with padding behind the tokenizer's last id."""


class Reseeding(PackedSampler):
    """Draws come from somewhere else than the requests' seeds."""

    def draw(self) -> int:
        return 0

    def score(self, logits: Tensor, batch: SamplingBatch) -> Tensor:
        windows = tuple(
            attrs.evolve(window, params=attrs.evolve(window.params, seed=self.draw())) for window in batch.windows
        )
        return super().score(logits, attrs.evolve(batch, windows=windows))


class OneGenerator(Reseeding):
    """All requests draw from one generator of the sampler's."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._random = Random(0)

    def draw(self) -> int:
        return self._random.getrandbits(40)


class GlobalGenerator(Reseeding):
    """All requests draw from Python's own generator."""

    def draw(self) -> int:
        return getrandbits(40)


class TorchGenerator(Reseeding):
    """All requests draw from torch's own generator."""

    def draw(self) -> int:
        return int(torch.randint(2**40, ()))


class ByPlaceInBatch(PackedSampler):
    """A request's place in the batch seeds its draws."""

    def score(self, logits: Tensor, batch: SamplingBatch) -> Tensor:
        windows = tuple(
            attrs.evolve(window, params=attrs.evolve(window.params, seed=place))
            for place, window in enumerate(batch.windows)
        )
        return super().score(logits, attrs.evolve(batch, windows=windows))


class ByClass(PackedSampler):
    """The parameters of the request that was seen first under an id are used for all that have it later."""

    seen: ClassVar[dict[int, Any]] = {}

    def score(self, logits: Tensor, batch: SamplingBatch) -> Tensor:
        windows = tuple(
            attrs.evolve(window, params=self.seen.setdefault(window.request_id, window.params))
            for window in batch.windows
        )
        return super().score(logits, attrs.evolve(batch, windows=windows))


class ForbidsNothing(PackedSampler):
    """The mask token may be chosen."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**{**arguments, "forbidden": frozenset()})


class TakesPadding(PackedSampler):
    """Every column of the head is a token."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**{**arguments, "vocab_size": TINY["vocab_size"]})


class MakesNumbersOfNaN(PackedSampler):
    """NaN counts as zero."""

    def score(self, logits: Tensor, batch: SamplingBatch) -> Tensor:
        return super().score(torch.nan_to_num(logits), batch)


class FailsForAll(PackedSampler):
    """A row with NaN makes the whole step one that is not finite."""

    def decide(self, scored: Tensor, batch: SamplingBatch) -> list[Decision]:
        decisions = super().decide(scored, batch)
        if all(each.finite for each in decisions):
            return decisions
        return [attrs.evolve(each, finite=False) for each in decisions]


class RaisesOnNaN(PackedSampler):
    """A row with NaN is an exception."""

    def score(self, logits: Tensor, batch: SamplingBatch) -> Tensor:
        if logits.isnan().any():
            raise FloatingPointError("NaN")
        return super().score(logits, batch)


class AbortsTheNextToo(ContinuousScheduler):
    """Whoever was added behind an aborted request goes with it."""

    def abort(self, request_id: int, reason: CompletionReason = CompletionReason.ABORTED) -> bool:
        super().abort(request_id + 1, reason)
        return super().abort(request_id, reason)


class EndsAbortsAsDone(ContinuousScheduler):
    """An aborted request says that it ran into its limit."""

    def abort(self, request_id: int, reason: CompletionReason = CompletionReason.ABORTED) -> bool:
        return super().abort(request_id, CompletionReason.LENGTH_TOKENS)


class Wrapped(nn.Module):
    """The kit's network, in the way of whose output something can be put."""

    def __init__(self, config: Mapping[str, Any], ctx: BuildContext) -> None:
        super().__init__()
        self.inner: Any = model.build(config, ctx)

    @property
    def kv_geometry(self) -> Any:
        return self.inner.kv_geometry

    @property
    def vocab_size(self) -> int:
        return int(self.inner.vocab_size)

    @property
    def windows(self) -> Any:
        return self.inner.windows

    def forward(self, input_ids: Tensor, positions: Tensor, ctx: ForwardContext) -> Tensor:
        return self.spoil(self.inner(input_ids, positions, ctx), ctx)

    def logits(self, hidden: Tensor) -> Tensor:
        columns: Tensor = self.inner.logits(hidden)
        return columns

    def spoil(self, hidden: Tensor, ctx: ForwardContext) -> Tensor:
        return hidden


class MixesRows(Wrapped):
    """Every row is shifted by the mean of the batch."""

    def spoil(self, hidden: Tensor, ctx: ForwardContext) -> Tensor:
        return hidden + hidden.mean(dim=0)


class RemembersTheLast(Wrapped):
    """The forward before leaves something behind."""

    last: ClassVar[list[Tensor]] = []

    def spoil(self, hidden: Tensor, ctx: ForwardContext) -> Tensor:
        before = self.last.pop() if self.last else torch.zeros_like(hidden[0])
        self.last.append(hidden[0].clone())
        return hidden + before


class RotatesByAddress(Wrapped):
    """Positions that stand at the same address are taken to be the same."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.known: dict[int, Tensor] = {}

    def forward(self, input_ids: Tensor, positions: Tensor, ctx: ForwardContext) -> Tensor:
        return super().forward(input_ids, self.known.setdefault(positions.data_ptr(), positions.clone()), ctx)


class SeesPageSize(Wrapped):
    """The size of pages shows."""

    def spoil(self, hidden: Tensor, ctx: ForwardContext) -> Tensor:
        return hidden.roll(ctx.batches[0].page_size, dims=1)


class SeesPieces(Wrapped):
    """How many rows are fed at once shows."""

    def spoil(self, hidden: Tensor, ctx: ForwardContext) -> Tensor:
        return hidden.roll(len(hidden) // 8, dims=1)


BUILT: dict[str, Any] = {}


def built_once(config: Mapping[str, Any], ctx: BuildContext) -> DiffusionModel:
    """The network is built for the first engine, and given to all others too."""
    network: DiffusionModel = BUILT.setdefault("network", model.build(config, ctx))
    return network
