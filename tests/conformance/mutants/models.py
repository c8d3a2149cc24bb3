"""Broken subjects for the checks of `diffulex_core.testing.checks.models` and the files that it takes in."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from diffulex_core.layers.decoder import Decoder
from diffulex_core.testing.check import AnyCheck
from diffulex_core.testing.checks import large_steps, models, other_numbers, visibility
from tests.conformance.broken_families import BrokenFamily, Build, decoder, family
from tests.conformance.broken_networks import (
    AddsTheRowBefore,
    AssumesPagesInOrder,
    Averages,
    BeginsOneLate,
    CentresTheBatch,
    CentresTheHead,
    CleansPages,
    CountsPositionsUp,
    CountsRows,
    DriftsAway,
    FillsTablesFromTheBatch,
    IgnoresPositions,
    KeepsWhatWasStoredFirst,
    OffByOneWhileDecoding,
    OneKeyTooFew,
    OneKeyTooMany,
    OwnCausalMask,
    OwnWindow,
    PadsTheHead,
    PeeksAtAllPages,
    ReadsAllPages,
    RemembersByShape,
    RemembersForAll,
    RotatesByPlaceInTheForward,
    ScalesHiddenInPlace,
    SeesFromTheStart,
    StoresOnlyFinalRows,
    TakesSlotsForPositions,
    WindowOfNobody,
    WritesNegativeSlots,
    WritesTheNextSlot,
)
from tests.conformance.broken_reach import (
    NUMBERS,
    BeginsAnew,
    GivesWayInLargeSteps,
    LosesTheRestOfItsPieces,
    RoundsPositions,
    TableOf500,
    one_table_for_all,
    reading,
    tables_of_500,
)
from tests.conformance.mutant import Mutant
from tests.conformance.mutants import witnesses


def _broken(kind: type[Decoder]) -> Callable[[], BrokenFamily]:
    return lambda: family(build=decoder(kind))


_TABLE: tuple[tuple[AnyCheck, dict[str, type[Decoder]]], ...] = (
    (
        models.check_rows_do_not_depend_on_their_batch,
        {
            "a mean over the batch is taken off": CentresTheBatch,
            "each row is mixed with the row before it": AddsTheRowBefore,
            "the number of padded rows counts": CountsRows,
            "all rows read the first sequence's pages": FillsTablesFromTheBatch,
        },
    ),
    (models.check_pages_may_stand_anywhere, {"a sequence's pages are taken to be in order": AssumesPagesInOrder}),
    (
        models.check_only_visible_slots_are_read,
        {
            "a mean over all pages": ReadsAllPages,
            "a mean over all pages without NaN": PeeksAtAllPages,
            "rows see one key too many": OneKeyTooMany,
        },
    ),
    (
        models.check_only_the_named_slots_are_written,
        {
            "slot -1 is the last slot": WritesNegativeSlots,
            "K/V go to the next slot": WritesTheNextSlot,
            "slots behind the rows are cleared": CleansPages,
            "rows that are not final store nothing": StoresOnlyFinalRows,
        },
    ),
    (
        models.check_a_prefill_may_be_cut,
        {
            "positions count from the first row": RotatesByPlaceInTheForward,
            "decoding is off by one": OffByOneWhileDecoding,
        },
    ),
    (
        models.check_cached_decoding_equals_reading_it_whole,
        {
            "the first K/V of a block stay": KeepsWhatWasStoredFirst,
            "positions count from the first row": RotatesByPlaceInTheForward,
        },
    ),
    (
        models.check_networks_keep_nothing_between_calls,
        {
            "a running mean": Averages,
            "answers are remembered by their number of rows": RemembersByShape,
            "all networks remember them together": RemembersForAll,
            "a weight drifts": DriftsAway,
            "positions are counted up in place": CountsPositionsUp,
            "the head scales hidden rows in place": ScalesHiddenInPlace,
        },
    ),
    (
        models.check_the_head_reads_each_row_alone,
        {"a mean over rows is taken off": CentresTheHead, "there are more columns than ids": PadsTheHead},
    ),
    (
        visibility.check_rows_see_the_keys_that_they_are_given,
        {
            "one key too many": OneKeyTooMany,
            "one key too few": OneKeyTooFew,
            "the interval begins one late": BeginsOneLate,
            "the interval begins at 0": SeesFromTheStart,
            "a causal mask of its own": OwnCausalMask,
            "a sliding window of its own": OwnWindow,
            "no layer is of a declared kind": WindowOfNobody,
        },
    ),
    (
        visibility.check_declared_visibility_is_real,
        {
            "a causal mask of its own": OwnCausalMask,
            "one key too many": OneKeyTooMany,
            "one key too few": OneKeyTooFew,
            "each row is mixed with the row before it": AddsTheRowBefore,
        },
    ),
    (
        visibility.check_positions_come_from_the_positions,
        {"slots are taken for positions": TakesSlotsForPositions},
    ),
    (visibility.check_positions_matter, {"positions are ignored": IgnoresPositions}),
    (
        large_steps.check_many_rows_are_as_few,
        {
            "the rest of its pieces is lost": LosesTheRestOfItsPieces,
            "a large step is another one": GivesWayInLargeSteps,
        },
    ),
    (
        large_steps.check_far_positions_differ,
        {
            "a table of 500 positions": TableOf500,
            "position 500 is position 0": BeginsAnew,
            "positions are rounded": RoundsPositions,
        },
    ),
)


def _remembering(name: str) -> BrokenFamily:
    """A family whose builder's module can be imported anew."""
    sound = family(config=NUMBERS)
    descriptor = attrs.evolve(sound.family, build=f"tests.conformance.remembering_models:{name}")
    return attrs.evolve(sound, entry=attrs.evolve(sound.entry, descriptor=descriptor))


_BUILDS: tuple[tuple[AnyCheck, str, Callable[[], Build]], ...] = (
    (large_steps.check_far_positions_differ, "a table of 500 positions that raises", lambda: tables_of_500),
    (
        other_numbers.check_numbers_of_the_config_count,
        "a rotary base that is built in",
        lambda: reading("rms_norm_eps"),
    ),
    (other_numbers.check_numbers_of_the_config_count, "an epsilon that is built in", lambda: reading("rope_theta")),
    (other_numbers.check_numbers_of_the_config_count, "one rotary table for all networks", one_table_for_all),
)

MUTANTS: tuple[Mutant, ...] = (
    *(Mutant(name=name, check=check, subject=_broken(kind)) for check, table in _TABLE for name, kind in table.items()),
    *(
        Mutant(
            name=name,
            check=other_numbers.check_networks_of_one_process_do_not_meet,
            subject=lambda name=name: _remembering(name),
        )
        for name in ("one_table_for_all", "one_embedding_for_all")
    ),
    *(
        Mutant(name=name, check=check, subject=lambda make=make: family(build=make(), config=NUMBERS))
        for check, name, make in _BUILDS
    ),
    *witnesses.MUTANTS,
)
