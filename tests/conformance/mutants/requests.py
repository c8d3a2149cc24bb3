"""Broken subjects for the checks of `diffulex_core.testing.checks.requests`."""

from __future__ import annotations

from functools import partial
from typing import Any

from diffulex_core.testing.check import AnyCheck
from diffulex_core.testing.checks import requests, requests_pages, requests_params, requests_rows, requests_state
from tests.conformance import broken_params, broken_patterns as patterns, broken_requests as broken
from tests.conformance.broken_strategies import strategy
from tests.conformance.mutant import Mutant


def by_request(check: AnyCheck, kind: type[object], **recipe: Any) -> Mutant:
    """A block-causal strategy with a broken request."""
    name = (kind.__doc__ or "").strip().rstrip(".")
    return Mutant(name=name, check=check, subject=partial(strategy, req=f"broken_requests:{kind.__name__}", **recipe))


def by_pattern(check: AnyCheck, kind: type[patterns.Blocks], **recipe: Any) -> Mutant:
    """A block-causal strategy with a broken pattern."""
    name = (kind.__doc__ or "").strip().rstrip(".")
    return Mutant(
        name=name, check=check, subject=partial(strategy, pattern=f"broken_patterns:{kind.__name__}", **recipe)
    )


def by_params(check: AnyCheck, kind: type[object]) -> Mutant:
    """A block-causal strategy whose request does not heed something."""
    name = (kind.__doc__ or "").strip().rstrip(".")
    return Mutant(name=name, check=check, subject=partial(strategy, req=f"broken_params:{kind.__name__}"))


FULL_PREFIX = {"pattern": "diffulex_core.testing.reference.patterns:full_prefix"}

MUTANTS: tuple[Mutant, ...] = (
    by_request(requests.check_prompt_stays, broken.RewritesPrompt),
    by_request(requests.check_prompt_stays, broken.AsksForPrompt),
    by_request(requests.check_committed_text_stays, broken.RewritesStored),
    by_request(requests.check_committed_text_stays, broken.TakesBack),
    by_request(requests.check_committed_text_stays, broken.ShowsDrafts),
    by_request(requests.check_committed_text_stays, broken.StoresDrafts),
    by_request(requests.check_requests_end, broken.DecidesNothing),
    by_request(requests.check_requests_end, broken.PlansNothing),
    by_request(requests.check_requests_end, broken.CountsTwice),
    by_request(requests.check_answers_are_clean, broken.ShowsMasks),
    by_request(requests.check_answers_are_clean, broken.IgnoresEos),
    by_request(requests.check_answers_are_clean, broken.TellsTheEnd),
    by_request(requests.check_answers_are_clean, broken.ExceedsLimit),
    by_request(requests.check_answers_are_clean, broken.IgnoresMaxNfe),
    by_request(requests.check_answers_are_clean, broken.EndsForNoReason),
    by_request(requests.check_answers_are_what_was_decided, broken.WritesOneFurther),
    by_request(requests.check_the_refused_is_not_taken, broken.TakesTheRefused),
    by_request(requests.check_shorter_limits_give_prefixes, broken.HurriesShortAnswers),
    by_request(requests_state.check_planning_changes_nothing, broken.CountsPlans),
    by_request(requests_state.check_planning_changes_nothing, broken.RollsDiceToPlan),
    by_request(requests_state.check_planning_changes_nothing, broken.LendsItsTokens),
    by_request(requests_state.check_foreign_decisions_are_refused, broken.TakesAnything),
    by_request(requests_state.check_foreign_decisions_are_refused, broken.RefusesTooLate),
    by_request(requests_state.check_requests_survive_losing_their_pages, broken.ForgetsWhenPreempted),
    by_request(requests_state.check_requests_survive_losing_their_pages, broken.StartsOverWhenPreempted),
    by_request(requests_state.check_requests_share_nothing, broken.SharesItsDraws),
    by_request(requests_state.check_requests_share_nothing, broken.DrawsByItsId),
    by_request(requests_state.check_requests_share_nothing, broken.RemembersByItsId),
    by_request(requests_state.check_requests_share_nothing, broken.RollsSharedDice),
    by_request(requests_state.check_steps_can_be_sent, broken.SendsItself),
    by_request(requests_pages.check_spans_keep_their_bounds, broken.UnderstatesSlots),
    by_request(requests_pages.check_spans_keep_their_bounds, broken.UnderstatesRows),
    by_request(requests_pages.check_spans_keep_their_bounds, broken.IgnoresItsBudget),
    by_request(requests_pages.check_spans_keep_their_bounds, broken.IsNeverInPieces),
    by_request(requests_pages.check_spans_keep_their_bounds, broken.AsksOneRowBefore),
    by_request(requests_pages.check_spans_keep_their_bounds, broken.IgnoresShift),
    by_request(requests_pages.check_rows_see_each_other, broken.RemembersWhatItFed),
    by_pattern(requests_pages.check_rows_see_each_other, patterns.OneShort),
    by_pattern(requests_pages.check_rows_see_each_other, patterns.OneShortForOthers),
    by_pattern(requests_pages.check_rows_see_each_other, patterns.WindowHidesItself),
    by_pattern(requests_pages.check_published_text_is_final, patterns.OneLong),
    by_pattern(requests_pages.check_published_text_is_final, patterns.DependsOnLess),
    by_pattern(requests_pages.check_published_text_is_final, patterns.WholePrompt),
    by_request(requests_pages.check_published_text_is_final, broken.StoresABlockTooEarly),
    by_request(
        requests_pages.check_published_text_is_final, broken.PublishesItsPrompt, pattern="broken_patterns:WholePrompt"
    ),
    by_request(requests_pages.check_published_text_is_final, broken.BlendsWhatItPublishes),
    by_request(requests_pages.check_pieces_see_the_same, broken.CutsAnywhere),
    by_request(requests_pages.check_pieces_see_the_same, broken.ReplaysUnderAnotherRule, **FULL_PREFIX),
    by_pattern(requests_pages.check_pieces_see_the_same, patterns.OneLong),
    by_params(requests_params.check_stop_tokens_end_answers, broken_params.KnowsOneStopToken),
    by_params(requests_params.check_answers_fit_into_the_model, broken_params.OutgrowsTheModel),
    by_params(requests_params.check_unsure_networks_end_too, broken_params.NeverForces),
    by_params(requests_params.check_repetition_ends_requests, broken_params.IgnoresRepetition),
    by_params(requests_params.check_temperature_and_seed_count, broken_params.IsAlwaysGreedy),
    by_params(requests_rows.check_carried_rows_were_kept, broken_params.ForgetsWhatItLacks),
    by_params(requests_rows.check_carried_rows_were_kept, broken_params.KeepsTheRowBefore),
    by_pattern(requests_rows.check_rows_see_their_whole_block, patterns.OneShortForStored),
    by_pattern(requests_rows.check_rows_see_their_whole_block, patterns.OneLong),
    by_pattern(requests_rows.check_windows_have_their_width, patterns.WindowIsOneWider),
    by_pattern(requests_rows.check_windows_have_their_width, patterns.WindowOfTheBlock),
)
