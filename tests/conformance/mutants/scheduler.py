"""Broken subjects for the checks of `diffulex_core.testing.checks.scheduler`."""

from __future__ import annotations

from diffulex_core.kv_cache import PagedKVCache
from diffulex_core.testing.check import AnyCheck
from diffulex_core.testing.checks import scheduler, scheduler_ends, scheduler_sequences
from diffulex_core.testing.subjects import MakeScheduler, SchedulerSubject
from tests.conformance.broken_company import ClosesUpDecisions, CommitsAllTokens, ForgetsWhoEndedLast
from tests.conformance.broken_plans import (
    AnswersOnlyOne,
    BlindToSeconds,
    CommitsAllThatIsFed,
    CommitsBrokenSteps,
    CommitsTheFilled,
    CommitsWhatIsPlanned,
    CountsNoLosses,
    DiesOfBrokenLogits,
    DrawsTheSameAgain,
    FeedsTheWrongPages,
    ForgetsAborted,
    IgnoresBrokenLogits,
    IgnoresTheCap,
    KeepsLossesQuiet,
    KeepsWhatItBorrows,
    ListsInPlans,
    LivePageTables,
    LoopsForEver,
    LosesTheSecond,
    MistakesThePrompt,
    NamesNobody,
    NamesThePreempted,
    NeverDone,
    NumbersStandStill,
    OneForAll,
    OneTableForBoth,
    PlansThatCannotTravel,
    ReturnsNobodyAtTheEnd,
    ReturnsTwice,
    SharesTheBooks,
    SharesWhoEnded,
    SwapsDecisions,
    TakesTurnsInLosing,
)
from tests.conformance.broken_schedulers import (
    AbortsLater,
    AbortsTwice,
    AbortsWithoutReason,
    AppliesAfterAbort,
    IgnoresThePlaces,
    IgnoresTheRows,
    LargestFirst,
    LeaksOnAbort,
    LeaksOnError,
    LeaksOnFinish,
    LeaksOnPreemption,
    LeaksSometimes,
    NeverTheOldest,
    NewcomersEatTheRows,
    NewestFirst,
    OpensOnArrival,
    PlansTwice,
    QueuesWhatItRefuses,
    RefusesTooMuch,
    SmallestFirst,
    TakesTheImpossible,
)
from tests.conformance.mutant import Mutant


def _mutant(name: str, check: AnyCheck, make: MakeScheduler) -> Mutant:
    return Mutant(
        name=name,
        check=check,
        subject=lambda: SchedulerSubject(name="broken", factory=make, kv_cache=PagedKVCache),
    )


MUTANTS: tuple[Mutant, ...] = (
    _mutant("pages of aborted requests leak", scheduler_ends.check_scheduler_gives_pages_back, LeaksOnAbort),
    _mutant("pages of finished requests leak", scheduler_ends.check_scheduler_gives_pages_back, LeaksOnFinish),
    _mutant("preemption leaks a page", scheduler_ends.check_scheduler_gives_pages_back, LeaksOnPreemption),
    _mutant("pages of broken requests leak", scheduler_ends.check_scheduler_gives_pages_back, LeaksOnError),
    _mutant("every tenth request leaks", scheduler_ends.check_scheduler_gives_pages_back, LeaksSometimes),
    _mutant("refused requests leak", scheduler.check_scheduler_refuses_what_can_never_fit, OpensOnArrival),
    _mutant("two schedulers share who ended", scheduler.check_schedulers_do_not_share_state, SharesWhoEnded),
    _mutant("abort frees pages with the next plan", scheduler_ends.check_scheduler_aborts_at_once, AbortsLater),
    _mutant("a second abort finds somebody", scheduler_ends.check_scheduler_aborts_at_once, AbortsTwice),
    _mutant("abort ignores the reason", scheduler_ends.check_scheduler_aborts_at_once, AbortsWithoutReason),
    _mutant("stands still after an abort", scheduler_ends.check_scheduler_aborts_at_once, AnswersOnlyOne),
    _mutant(
        "who was aborted in flight is returned", scheduler_ends.check_scheduler_returns_who_ended, AppliesAfterAbort
    ),
    _mutant("some who ended are not returned", scheduler_ends.check_scheduler_returns_who_ended, ReturnsNobodyAtTheEnd),
    _mutant("who ended is returned twice", scheduler_ends.check_scheduler_returns_who_ended, ReturnsTwice),
    _mutant("has work for ever", scheduler_ends.check_scheduler_returns_who_ended, NeverDone),
    _mutant("plans do not name who ended", scheduler_ends.check_scheduler_names_who_ended, NamesNobody),
    _mutant("plans name who was preempted", scheduler_ends.check_scheduler_names_who_ended, NamesThePreempted),
    _mutant("plans do not name who was aborted", scheduler_ends.check_scheduler_names_who_ended, ForgetsAborted),
    _mutant(
        "broken steps are shared", scheduler_ends.check_scheduler_lets_broken_requests_end_alone, CommitsBrokenSteps
    ),
    _mutant(
        "publishes what is planned", scheduler_ends.check_scheduler_lets_broken_requests_end_alone, CommitsWhatIsPlanned
    ),
    _mutant("loops for ever", scheduler.check_scheduler_goes_on_when_pages_are_short, LoopsForEver),
    _mutant(
        "broken logits end everybody", scheduler_ends.check_scheduler_lets_broken_requests_end_alone, DiesOfBrokenLogits
    ),
    _mutant(
        "broken logits are ignored", scheduler_ends.check_scheduler_lets_broken_requests_end_alone, IgnoresBrokenLogits
    ),
    _mutant("takes what can never fit", scheduler.check_scheduler_refuses_what_can_never_fit, TakesTheImpossible),
    _mutant("refuses what just fits", scheduler.check_scheduler_refuses_what_can_never_fit, RefusesTooMuch),
    _mutant("queues what it refuses", scheduler.check_scheduler_refuses_what_can_never_fit, QueuesWhatItRefuses),
    _mutant("exceeds the row budget", scheduler.check_scheduler_keeps_within_its_budgets, IgnoresTheRows),
    _mutant("exceeds max_num_reqs", scheduler.check_scheduler_keeps_within_its_budgets, IgnoresThePlaces),
    _mutant("newest first", scheduler.check_scheduler_starves_nobody, NewestFirst),
    _mutant("smallest first", scheduler.check_scheduler_starves_nobody, SmallestFirst),
    _mutant("largest first", scheduler.check_scheduler_starves_nobody, LargestFirst),
    _mutant("never the oldest", scheduler.check_scheduler_starves_nobody, NeverTheOldest),
    _mutant("newcomers eat the rows", scheduler.check_scheduler_starves_nobody, NewcomersEatTheRows),
    _mutant(
        "two take turns in losing their pages",
        scheduler.check_scheduler_goes_on_when_pages_are_short,
        TakesTurnsInLosing,
    ),
    _mutant(
        "does not tell who lost pages", scheduler.check_scheduler_tells_requests_that_lost_their_pages, KeepsLossesQuiet
    ),
    _mutant("does not count losses", scheduler.check_scheduler_tells_requests_that_lost_their_pages, CountsNoLosses),
    _mutant("publishes what is fed", scheduler.check_scheduler_publishes_only_what_is_final, CommitsAllThatIsFed),
    _mutant("publishes what is filled", scheduler.check_scheduler_publishes_only_what_is_final, CommitsTheFilled),
    _mutant("swaps decisions", scheduler.check_scheduler_gives_each_request_its_own_decisions, SwapsDecisions),
    _mutant(
        "decisions move up when somebody leaves",
        scheduler.check_scheduler_gives_each_request_its_own_decisions,
        ClosesUpDecisions,
    ),
    _mutant("forgets who ended last", scheduler_ends.check_scheduler_names_who_ended, ForgetsWhoEndedLast),
    _mutant("publishes private tokens", scheduler.check_scheduler_publishes_only_what_is_final, CommitsAllTokens),
    _mutant("swaps page tables", scheduler.check_scheduler_answers_are_those_of_lone_requests, FeedsTheWrongPages),
    _mutant("draws are not counted", scheduler.check_scheduler_answers_are_those_of_lone_requests, DrawsTheSameAgain),
    _mutant("prompts grow", scheduler.check_scheduler_answers_are_those_of_lone_requests, MistakesThePrompt),
    _mutant("one's parameters for all", scheduler.check_scheduler_answers_are_those_of_lone_requests, OneForAll),
    _mutant("page tables are live arrays", scheduler.check_scheduler_plans_are_values, LivePageTables),
    _mutant("plans hold lists", scheduler.check_scheduler_plans_are_values, ListsInPlans),
    _mutant("plans cannot be pickled", scheduler.check_scheduler_plans_are_values, PlansThatCannotTravel),
    _mutant("plans are not counted", scheduler.check_scheduler_plans_are_values, NumbersStandStill),
    _mutant("two schedulers share a book", scheduler.check_schedulers_do_not_share_state, SharesTheBooks),
    _mutant("knows no second sequences", scheduler_sequences.check_scheduler_serves_two_sequences, BlindToSeconds),
    _mutant("one table for two sequences", scheduler_sequences.check_scheduler_serves_two_sequences, OneTableForBoth),
    _mutant("second sequences leak", scheduler_sequences.check_scheduler_serves_two_sequences, LosesTheSecond),
    _mutant(
        "borrowed pages are kept", scheduler_sequences.check_scheduler_takes_borrowed_pages_back, KeepsWhatItBorrows
    ),
    _mutant("ignores max_refresh_tokens", scheduler_sequences.check_scheduler_takes_borrowed_pages_back, IgnoresTheCap),
    _mutant(
        "a request stands in a plan twice", scheduler.check_scheduler_gives_each_request_its_own_decisions, PlansTwice
    ),
    _mutant("aborted requests leak", scheduler.check_scheduler_serves_any_history, LeaksOnAbort),
    _mutant("publishes what is fed", scheduler.check_scheduler_serves_any_history, CommitsAllThatIsFed),
)
