"""Broken subjects for the checks of `diffulex_core.testing.checks.engine`."""

from __future__ import annotations

from functools import partial
from typing import Any

import attrs

from diffulex_core.plugin import Component, ModelFamily
from diffulex_core.testing.check import AnyCheck
from diffulex_core.testing.checks import engine, engine_ends
from tests.conformance import broken_engines as broken, broken_patterns as patterns, broken_requests as requests
from tests.conformance.broken_strategies import HERE, engine as subject, kit_family
from tests.conformance.mutant import Mutant
from tests.conformance.mutants import scheduler as schedulers


def by_sampler(check: AnyCheck, kind: type[object]) -> Mutant:
    """An engine with a broken sampler, whose family's vocabulary is padded."""
    return _mutant(check, kind, part=_part("sampler", kind), sampler=kind.__name__, family=_family(None))


def by_scheduler(check: AnyCheck, kind: type[object]) -> Mutant:
    """An engine with a broken scheduler."""
    return _mutant(check, kind, part=_part("scheduler", kind), scheduler=kind.__name__)


def by_request(check: AnyCheck, kind: type[object], **recipe: Any) -> Mutant:
    """An engine with broken requests."""
    return _mutant(check, kind, req=f"broken_requests:{kind.__name__}", **recipe)


def by_network(check: AnyCheck, kind: Any) -> Mutant:
    """An engine with a broken network."""
    return _mutant(check, kind, family=_family(kind))


def _mutant(check: AnyCheck, kind: Any, **parts: Any) -> Mutant:
    return Mutant(name=str(kind.__doc__).strip().rstrip("."), check=check, subject=partial(subject, **parts))


def _part(kind: Any, code: type[object]) -> Component:
    return Component(kind=kind, name=code.__name__, factory=f"{code.__module__}:{code.__name__}")


def _family(build: Any) -> ModelFamily:
    found = kit_family()
    return attrs.evolve(
        found,
        name="mutant_family",
        architectures=("MutantForMaskedLM",),
        tiny=f"{HERE}broken_engines:TINY",
        build=found.build if build is None else f"{HERE}broken_engines:{build.__name__}",
    )


MUTANTS: tuple[Mutant, ...] = (
    by_sampler(engine.check_batches_answer_as_alone, broken.OneGenerator),
    by_sampler(engine.check_batches_answer_as_alone, broken.ByPlaceInBatch),
    by_network(engine.check_batches_answer_as_alone, broken.MixesRows),
    by_scheduler(engine.check_batches_answer_as_alone, schedulers.SwapsDecisions),
    by_request(engine.check_batches_answer_as_alone, requests.SharesItsDraws),
    by_sampler(engine.check_seeds_fix_answers, broken.OneGenerator),
    by_sampler(engine.check_seeds_fix_answers, broken.GlobalGenerator),
    by_sampler(engine.check_seeds_fix_answers, broken.TorchGenerator),
    by_request(engine.check_seeds_fix_answers, requests.DrawsByItsId),
    by_sampler(engine.check_engines_share_nothing, broken.ByClass),
    by_network(engine.check_engines_share_nothing, broken.RemembersTheLast),
    by_request(engine.check_engines_share_nothing, requests.RemembersByItsId),
    by_request(engine.check_engines_share_nothing, requests.KeepsTheFirstContext),
    by_scheduler(engine.check_engines_share_nothing, schedulers.SharesTheBooks),
    by_request(
        engine.check_cached_pages_change_nothing, requests.PublishesItsPrompt, pattern="broken_patterns:WholePrompt"
    ),
    _mutant(engine.check_cached_pages_change_nothing, patterns.OneLong, pattern="broken_patterns:OneLong"),
    by_network(engine.check_pieces_change_nothing, broken.SeesPieces),
    by_request(engine.check_pieces_change_nothing, requests.CutsAnywhere),
    by_network(engine.check_page_size_changes_nothing, broken.SeesPageSize),
    by_request(engine.check_preemption_changes_nothing, requests.StartsOverWhenPreempted),
    by_scheduler(engine.check_preemption_changes_nothing, schedulers.LeaksOnPreemption),
    by_sampler(engine_ends.check_answers_hold_real_tokens, broken.ForbidsNothing),
    by_sampler(engine_ends.check_answers_hold_real_tokens, broken.TakesPadding),
    by_request(engine_ends.check_answers_hold_real_tokens, requests.IgnoresEos),
    by_scheduler(engine_ends.check_pages_come_back, schedulers.LeaksOnAbort),
    by_scheduler(engine_ends.check_aborts_leave_others_alone, broken.AbortsTheNextToo),
    by_scheduler(engine_ends.check_aborts_leave_others_alone, broken.EndsAbortsAsDone),
    by_request(engine_ends.check_aborts_leave_others_alone, requests.ShowsMasks),
    by_request(engine_ends.check_streams_end_as_answers, requests.ShowsDrafts),
    by_sampler(engine_ends.check_nan_fails_one_request, broken.MakesNumbersOfNaN),
    by_sampler(engine_ends.check_nan_fails_one_request, broken.FailsForAll),
    by_sampler(engine_ends.check_nan_fails_one_request, broken.RaisesOnNaN),
    by_network(engine_ends.check_nan_fails_one_request, broken.MixesRows),
    by_network(engine_ends.check_engines_close, broken.built_once),
)
