"""Resolvers that take a tensor for another one of its shape, and tell so consistently."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs

from diffulex_core.layers.decoder import Decoder
from diffulex_core.layers.moe import MoESpec
from diffulex_core.testing.reference import model
from diffulex_core.weights import LoadContext, Rename, ResolvedWeight, ShardId, WeightRules
from tests.conformance.broken_families import decoder

EXPERTS = decoder(
    Decoder,
    moe=MoESpec(num_experts=3, experts_per_token=1, expert_size=16, router="softmax", renormalize=True),
    sparse_layers={1},
)
"""The kit's decoder with experts in its second layer."""
EXPERT_RULES = WeightRules(
    *model.WEIGHTS.rules,
    Rename("layers.{i}.router.weight", "layers.{i}.mlp.router.weight"),
    Rename("layers.{i}.experts.{e}.{gate,up}.weight", "layers.{i}.mlp.experts.w13", shard="{e}.{gate,up}"),
    Rename("layers.{i}.experts.{e}.down.weight", "layers.{i}.mlp.experts.w2", shard="{e}"),
)


@attrs.frozen
class Mistakes:
    """Reads a name as another one.

    Attributes:
        read: name -> name; read twice it is what it was.
        rules: what the other name leads to.
    """

    read: Callable[[str], str]
    rules: WeightRules = model.WEIGHTS

    def resolve_checkpoint_weight(self, name: str, ctx: LoadContext) -> ResolvedWeight | None:
        return self.rules.resolve_checkpoint_weight(self.read(name), ctx)

    def sources(self, target: str, shard_id: ShardId | None) -> Sequence[str]:
        return [self.read(name) for name in self.rules.sources(target, shard_id)]


def swapped(name: str, one: str, other: str, *, where: str = "") -> str:
    """A name in which two words change places, if it holds another one."""
    return name.replace(one, "?").replace(other, one).replace("?", other) if where in name else name
