"""Families that are unusual, and right, pass every check that applies to them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from diffulex_core.plugin import Capability
from diffulex_core.testing.catalogue import CHECKS
from diffulex_core.testing.checks import families
from diffulex_core.testing.effort import Effort
from diffulex_core.testing.reference import model
from diffulex_core.testing.subjects import FamilySubject
from diffulex_core.weights import LoadContext, ResolvedWeight
from tests.conformance.broken_families import BrokenFamily, decoder, family
from tests.conformance.mutants.families import checked, sound_check
from tests.conformance.mutants.witnesses import with_oracle
from tests.conformance.unusual_networks import Conditioned, LearnedPositions, OwnAttention, SlidingLayers


class HandWritten:
    """Splits names by hand and says nothing about them."""

    def resolve_checkpoint_weight(self, name: str, ctx: LoadContext) -> ResolvedWeight | None:
        return model.WEIGHTS.resolve_checkpoint_weight(name.replace("_proj.", ".").removeprefix("model."), ctx)


class Turned(HandWritten):
    """A checkpoint that stores all matrices of the layers turned, as old ones do."""

    def resolve_checkpoint_weight(self, name: str, ctx: LoadContext) -> ResolvedWeight | None:
        found = super().resolve_checkpoint_weight(name, ctx)
        if found is None or not name.startswith("layers.") or "norm" in name:
            return found
        return ResolvedWeight(param=found.param, shard_id=found.shard_id, transform=lambda tensor: tensor.T)


UNUSUAL: dict[str, Callable[[], BrokenFamily]] = {
    "a reference": with_oracle(),
    "a resolver without sources": lambda: family(weights=HandWritten()),
    "turned matrices": lambda: family(weights=Turned(), config={"kv_heads": model.TINY["heads"]}),
    "one layer of one key/value head": lambda: family(config={"layers": 1, "kv_heads": 1}),
    "sliding layers and a tied head": lambda: family(build=decoder(SlidingLayers, tie_embeddings=True)),
    "attention of its own": lambda: family(build=decoder(OwnAttention)),
    "learned positions and soft inputs": lambda: family(
        build=decoder(LearnedPositions), provides={Capability.SOFT_INPUTS}
    ),
    "self-conditioning and normalised heads": lambda: family(
        build=decoder(Conditioned, qk_norm=True), provides={Capability.SELF_CONDITIONING}
    ),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_an_unusual_family_passes(name: str) -> None:
    subject = UNUSUAL[name]()
    for check in CHECKS:
        if check.subject is FamilySubject and check.when(subject) is None:
            check(subject, Effort())


def test_a_family_with_a_sound_check_of_its_config_passes() -> None:
    families.check_config_problems_are_told(checked(sound_check), Effort())


def test_a_resolver_without_sources_is_checked_all_the_same() -> None:
    subject = UNUSUAL["a resolver without sources"]()
    assert {check.name for check in CHECKS if check.subject is FamilySubject and check.when(subject) is not None} == {
        "check_blends_stand_in_for_tokens",
        "check_config_problems_are_told",
        "check_logits_equal_the_reference",
        "check_self_conditioning_is_heeded",
    }
