"""Broken subjects for the checks of `diffulex_core.testing.checks.weights` and the file that it takes in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffulex_core.layers.decoder import Decoder
from diffulex_core.protocols import WeightResolver
from diffulex_core.testing.check import AnyCheck
from diffulex_core.testing.checks import placement, projections, weights
from diffulex_core.testing.reference import model
from diffulex_core.weights import Skip, WeightRules
from tests.conformance.broken_families import BrokenFamily, Build, decoder, family
from tests.conformance.broken_placement import EXPERT_RULES, EXPERTS, Mistakes, swapped
from tests.conformance.broken_resolvers import (
    ALL_HEADS,
    Broadcasts,
    DropsAShard,
    DropsTheLastRow,
    FillsHalfATie,
    GoesByOrder,
    HandWritten,
    KnowsStrangeNames,
    LayersSwapped,
    LeavesValuesOut,
    SendsTwoToOnePlace,
    SkipsANorm,
    SkipsTheHead,
    SkipsWhateverIsStrange,
    SplitsInAnotherOrder,
    StumblesOverStrangeNames,
    SwapsLayers,
    SwapsQueriesAndKeys,
    TurnsSquares,
    backwards,
    everyone_is_first,
    relabelled,
)
from tests.conformance.mutant import Mutant


def _with(
    resolver: Callable[[], WeightResolver], build: Build | None = None, **config: Any
) -> Callable[[], BrokenFamily]:
    return lambda: family(weights=resolver(), build=build, config=config)


def _mistaking(one: str, other: str, *, where: str = "") -> Callable[[], BrokenFamily]:
    return _with(lambda: Mistakes(lambda name: swapped(name, one, other, where=where)))


def _built(build: Build, **config: Any) -> Callable[[], BrokenFamily]:
    return lambda: family(build=build, config=config)


_TABLE: tuple[tuple[AnyCheck, dict[str, Callable[[], BrokenFamily]]], ...] = (
    (weights.check_checkpoint_names_are_known, {"a resolver that says no names": _with(KnowsStrangeNames)}),
    (
        weights.check_every_tensor_has_its_place,
        {
            "queries and keys are swapped": _with(SwapsQueriesAndKeys, **ALL_HEADS),
            "layers are swapped": _with(SwapsLayers),
            "a norm is skipped": _with(SkipsANorm),
            "two tensors go to one place": _with(SendsTwoToOnePlace),
            "a head that is not tied is skipped as if it were": _with(SkipsTheHead),
        },
    ),
    (
        weights.check_every_number_is_written,
        {
            "a packed parameter has one part too few": _built(decoder(LeavesValuesOut)),
            "the last row of a matrix is dropped": _with(DropsTheLastRow),
            "a tied weight is half filled under its other name": _with(
                FillsHalfATie, decoder(Decoder, tie_embeddings=True)
            ),
        },
    ),
    (
        weights.check_numbers_arrive_where_they_belong,
        {
            "square matrices are turned": _with(TurnsSquares),
            "one row is copied to all": _with(Broadcasts),
        },
    ),
    (
        weights.check_shares_make_up_the_whole,
        {
            "everyone holds the first share": _built(everyone_is_first),
            "shares stand in the wrong order": _built(backwards),
            "a shard is dropped": _built(decoder(DropsAShard)),
        },
    ),
    (weights.check_files_and_order_do_not_matter, {"tensors are told apart by their order": _with(GoesByOrder)}),
    (
        weights.check_damaged_checkpoints_are_refused,
        {
            "strange tensors are skipped": _with(SkipsWhateverIsStrange),
            "strange names raise": _with(StumblesOverStrangeNames),
            "a rule skips by too wide a pattern": _with(
                lambda: WeightRules(*model.WEIGHTS.rules, Skip("layers.{i}.*.surprise", "not needed"))
            ),
        },
    ),
    (
        projections.check_projections_are_what_they_are_called,
        {
            "keys and values are swapped in all rules": _with(lambda: relabelled(shards={"k": "v", "v": "k"})),
            "queries and keys are swapped in all rules": _with(
                lambda: relabelled(shards={"q": "k", "k": "q"}), **ALL_HEADS
            ),
            "keys and values are swapped by hand": _with(HandWritten),
            "packed keys and values are split in another order": _built(decoder(SplitsInAnotherOrder)),
            "layers are swapped in all rules": _with(LayersSwapped),
        },
    ),
    (
        projections.check_gates_are_what_they_are_called,
        {
            "gate and up are swapped in all rules": _with(lambda: relabelled(shards={"gate": "up", "up": "gate"})),
            "gate and up are swapped in the last layer": _mistaking("gate", "up", where="layers.1."),
        },
    ),
    (
        placement.check_tensors_are_in_the_layer_of_their_name,
        {
            "output projections of two layers are swapped": _mistaking("layers.0.", "layers.1.", where=".out."),
            "the norms of one layer are swapped": _mistaking("attn_norm", "ff_norm", where="layers.1."),
        },
    ),
    (
        placement.check_tensors_of_an_expert_belong_together,
        {
            "outputs of two experts are swapped": lambda: family(
                build=EXPERTS,
                weights=Mistakes(lambda name: swapped(name, "experts.0.", "experts.1.", where="down"), EXPERT_RULES),
            )
        },
    ),
    (
        placement.check_ends_are_what_they_are_called,
        {"embedding and head are swapped": _mistaking("embed.", "head.")},
    ),
)

MUTANTS: tuple[Mutant, ...] = tuple(
    Mutant(name=name, check=check, subject=subject) for check, table in _TABLE for name, subject in table.items()
)
