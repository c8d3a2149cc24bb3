"""The kit's own family with parts replaced by broken ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import attrs
from torch import Tensor

from diffulex_core.context import BuildContext, ForwardContext
from diffulex_core.host import Host
from diffulex_core.layers.decoder import Decoder
from diffulex_core.plugin import ModelFamily
from diffulex_core.protocols import WeightResolver
from diffulex_core.testing.reference import model, plugin as reference
from diffulex_core.testing.subjects import FamilySubject
from diffulex_core.types import AttentionBatch

Build = Callable[[Mapping[str, Any], BuildContext], Any]


@attrs.frozen(kw_only=True, eq=False)
class BrokenFamily(FamilySubject):
    """A family of which some references lead to other code.

    Attributes:
        parts: that code by reference.
    """

    parts: Mapping[str, Any] = attrs.field(factory=dict)

    def load(self, reference: str) -> Any:
        return self.parts[reference] if reference in self.parts else super().load(reference)


@cache
def host() -> Host:
    """Core and the kit's plugin."""
    return Host.discover(extra=[reference], environ={})


def family(
    *,
    build: Build | None = None,
    weights: WeightResolver | None = None,
    config: Mapping[str, Any] | None = None,
    parts: Mapping[str, Any] | None = None,
    **descriptor: Any,
) -> BrokenFamily:
    """The kit's family with another builder, resolver, config.json, other code or other fields of the descriptor."""
    entry = host().models.entry(reference.FAMILY)
    changed: ModelFamily = attrs.evolve(entry.descriptor, **descriptor)
    replaced: dict[str, Any] = dict(parts or {})
    if build is not None:
        replaced[changed.build] = build
    if weights is not None:
        replaced[changed.weights] = weights
    return BrokenFamily(
        host=host(),
        entry=attrs.evolve(entry, descriptor=changed),
        config={**model.TINY, **(config or {})},
        parts=replaced,
    )


def decoder(kind: type[Decoder], **spec: Any) -> Build:
    """A builder of the kit's decoder as another class, and with other numbers than config.json has."""

    def build(config: Mapping[str, Any], ctx: BuildContext) -> Decoder:
        sound = model.build(config, ctx)
        assert isinstance(sound, Decoder)
        return kind(attrs.evolve(sound.spec, **spec), ctx)

    return build


class Misled(Decoder):
    """A decoder that changes what it is told before it heeds it."""

    def forward(self, input_ids: Tensor, positions: Tensor, ctx: ForwardContext) -> Tensor:
        return super().forward(input_ids, self.positions(positions, ctx), self.told(positions, ctx))

    def positions(self, positions: Tensor, ctx: ForwardContext) -> Tensor:
        return positions

    def told(self, positions: Tensor, ctx: ForwardContext) -> ForwardContext:
        return attrs.evolve(ctx, batches=tuple(self.batch(positions, batch) for batch in ctx.batches))

    def batch(self, positions: Tensor, batch: AttentionBatch) -> AttentionBatch:
        return batch
