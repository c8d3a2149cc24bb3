"""Broken subjects for the checks of `diffulex_core.testing.checks.scheduler`."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np

from diffulex_core.errors import OutOfPages, PromptTooLong
from diffulex_core.kv_cache import PagedKVCache
from diffulex_core.protocols import KVCacheManager, Req
from diffulex_core.scheduler import ContinuousScheduler
from diffulex_core.testing.check import AnyCheck
from diffulex_core.testing.checks import scheduler, scheduler_ends, scheduler_sequences
from diffulex_core.testing.subjects import MakeScheduler, SchedulerSubject
from diffulex_core.types import CompletionReason, Span, StepOutput, StepPlan
from tests.conformance.mutant import Mutant


class LeaksOnAbort(ContinuousScheduler):
    """An aborted request keeps its pages."""

    def abort(self, request_id: int, reason: CompletionReason = CompletionReason.ABORTED) -> bool:
        release, self._release = self._release, lambda entry: None  # type: ignore[method-assign]
        try:
            return super().abort(request_id, reason)
        finally:
            self._release = release  # type: ignore[method-assign]


class LeaksOnFinish(ContinuousScheduler):
    """A request that is done keeps its pages."""

    def update(self, plan: StepPlan, output: StepOutput) -> Sequence[Req]:
        release, self._release = self._release, lambda entry: None  # type: ignore[method-assign]
        try:
            return super().update(plan, output)
        finally:
            self._release = release  # type: ignore[method-assign]


class LeaksOnPreemption(ContinuousScheduler):
    """The first preemption leaves a page behind, in a sequence that nobody knows."""

    _leaked = False

    def _preempt(self, entry: Any) -> None:
        super()._preempt(entry)
        if not self._leaked:
            self._leaked = True
            self._kv.open(-1000, np.empty(0, dtype=np.int64), 1)
            self._kv.reserve(-1000, 1)


class LeaksOnError(ContinuousScheduler):
    """A request with broken logits keeps its pages."""

    def update(self, plan: StepPlan, output: StepOutput) -> Sequence[Req]:
        broken = [
            window for window, decision in zip(plan.windows, output.decisions, strict=True) if not decision.finite
        ]
        for window in broken:
            self._running[window.request_id].sequences = ()
        return super().update(plan, output)


class LeaksSometimes(ContinuousScheduler):
    """Every tenth request that ends keeps its pages."""

    _released = 0

    def _release(self, entry: Any) -> None:
        self._released += 1
        if self._released % 10:
            super()._release(entry)


class OpensOnArrival(ContinuousScheduler):
    """A page is taken for everybody who comes, also for those who are refused."""

    def add(self, request: Req) -> None:
        self._kv.open(-1000 - request.request_id, np.empty(0, dtype=np.int64), 1)
        self._kv.reserve(-1000 - request.request_id, 1)
        super().add(request)
        self._kv.release(-1000 - request.request_id)


class AbortsLater(ContinuousScheduler):
    """The pages of an aborted request are freed with the next plan."""

    def __init__(self, kv_cache: KVCacheManager, **settings: Any) -> None:
        super().__init__(kv_cache, **settings)
        self._later: list[Any] = []

    def abort(self, request_id: int, reason: CompletionReason = CompletionReason.ABORTED) -> bool:
        running = self._running.get(request_id)
        if running is not None:
            self._later.append(attrs.evolve(running))
            running.sequences = ()
        return super().abort(request_id, reason)

    def schedule(self) -> StepPlan | None:
        for entry in self._later:
            self._release(entry)
        self._later.clear()
        return super().schedule()

    def check_integrity(self) -> None:
        """Pages are late."""


class AbortsTwice(ContinuousScheduler):
    """An abort of somebody who is gone says True."""

    def abort(self, request_id: int, reason: CompletionReason = CompletionReason.ABORTED) -> bool:
        return super().abort(request_id, reason) or request_id < self._arrivals


class AbortsWithoutReason(ContinuousScheduler):
    """Every abort says ABORTED."""

    def abort(self, request_id: int, reason: CompletionReason = CompletionReason.ABORTED) -> bool:
        return super().abort(request_id)


class AppliesAfterAbort(ContinuousScheduler):
    """A request that was aborted while its step ran is returned all the same."""

    def update(self, plan: StepPlan, output: StepOutput) -> Sequence[Req]:
        done = list(super().update(plan, output))
        return [*done, *(entry.request for entry in self._gone(plan) if entry.request not in done)]

    def schedule(self) -> StepPlan | None:
        plan = super().schedule()
        self._before = dict(self._known)
        return plan

    def _gone(self, plan: StepPlan) -> list[Any]:
        return [
            self._before[window.request_id]
            for window in plan.windows
            if self._before[window.request_id].request.completion is CompletionReason.ABORTED
        ]


class TakesTheImpossible(ContinuousScheduler):
    """What does not fit is found out in the loop."""

    def add(self, request: Req) -> None:
        budget, self._budget = self._budget, 10**9
        kv, self._kv = (
            self._kv,
            PagedKVCache(num_pages=10**4, page_size=self._kv.page_size, pattern=None, prefix_caching=False),
        )
        try:
            super().add(request)
        finally:
            self._budget, self._kv = budget, kv


class RefusesTooMuch(ContinuousScheduler):
    """Requests must leave a page free."""

    def add(self, request: Req) -> None:
        if request.most_slots() > (self._kv.num_pages - 1) * self._kv.page_size:
            raise PromptTooLong("too long")
        super().add(request)


class QueuesWhatItRefuses(ContinuousScheduler):
    """A refused request waits all the same."""

    def add(self, request: Req) -> None:
        try:
            super().add(request)
        except PromptTooLong:
            self._known[request.request_id] = None  # type: ignore[assignment]
            raise


class IgnoresTheRows(ContinuousScheduler):
    """Twice as many rows as allowed."""

    def __init__(self, kv_cache: KVCacheManager, *, max_num_batched_tokens: int, **settings: Any) -> None:
        super().__init__(kv_cache, max_num_batched_tokens=2 * max_num_batched_tokens, **settings)


class IgnoresThePlaces(ContinuousScheduler):
    """One request more than allowed."""

    def __init__(self, kv_cache: KVCacheManager, *, max_num_reqs: int, **settings: Any) -> None:
        super().__init__(kv_cache, max_num_reqs=max_num_reqs + 1, **settings)


class PlansTwice(ContinuousScheduler):
    """The first window stands in the plan twice."""

    def schedule(self) -> StepPlan | None:
        plan = super().schedule()
        if plan is None or len(plan.windows) < 2:
            return plan
        return attrs.evolve(plan, windows=(*plan.windows[:-1], plan.windows[0]))


class NewestFirst(ContinuousScheduler):
    """Who came last is served first."""

    def add(self, request: Req) -> None:
        super().add(request)
        self._waiting = [(-entry.arrival, entry) for _, entry in self._waiting]
        heapq.heapify(self._waiting)


class SmallestFirst(ContinuousScheduler):
    """Who needs least is served first."""

    def add(self, request: Req) -> None:
        super().add(request)
        self._waiting = [(entry.request.most_slots() * 10**6 + entry.arrival, entry) for _, entry in self._waiting]
        heapq.heapify(self._waiting)


class LargestFirst(ContinuousScheduler):
    """Who needs most is served first."""

    def add(self, request: Req) -> None:
        super().add(request)
        self._waiting = [(entry.arrival - entry.request.most_slots() * 10**6, entry) for _, entry in self._waiting]
        heapq.heapify(self._waiting)


class NewcomersEatTheRows(ContinuousScheduler):
    """Among running requests the youngest gets its rows first, every time."""

    def _place_running(self, draft: Any) -> None:
        for entry in self._running.values():
            entry.last_step = -entry.arrival
        super()._place_running(draft)

    def schedule(self) -> StepPlan | None:
        self._head_waits = True
        return super().schedule()


class NeverTheOldest(ContinuousScheduler):
    """The oldest running request is left out as long as others have something to do."""

    def schedule(self) -> StepPlan | None:
        plan = super().schedule()
        if plan is None or len(plan.windows) < 2:
            return plan
        oldest = min(window.request_id for window in plan.windows)
        return attrs.evolve(plan, windows=tuple(each for each in plan.windows if each.request_id != oldest))


class TakesTurnsInLosing(ContinuousScheduler):
    """Whoever finds no pages takes those of the oldest request, which comes back as the newest."""

    def _reserve(self, spans: dict[int, Span]) -> dict[int, Span]:
        granted: dict[int, Span] = {}
        for request_id in sorted(spans, key=lambda request_id: -self._running[request_id].arrival):
            while request_id in self._running:
                try:
                    self._reserve_all(self._running[request_id], spans[request_id].slots)
                    granted[request_id] = spans[request_id]
                    break
                except OutOfPages:
                    victim = min(filter(self._pages, self._running.values()), key=lambda other: other.arrival)
                    self._arrivals += 1
                    victim.arrival = self._arrivals
                    self._preempt(victim)
        return {request_id: span for request_id, span in granted.items() if request_id in self._running}


class LoopsForEver(ContinuousScheduler):
    """As soon as pages are short it waits for them in a loop."""

    def _preempt(self, entry: Any) -> None:
        while self._pages(entry):
            pass


class KeepsLossesQuiet(ContinuousScheduler):
    """Requests are not told that their pages are gone."""

    def _preempt(self, entry: Any) -> None:
        request, entry.request = entry.request, _Deaf(entry.request)
        super()._preempt(entry)
        entry.request = request


@attrs.frozen
class _Deaf:
    inner: Any

    @property
    def request_id(self) -> int:
        return int(self.inner.request_id)

    def preempted(self) -> None:
        """Not passed on."""


class CountsNoLosses(ContinuousScheduler):
    """Windows say that nobody ever lost his pages."""

    def _window(self, entry: Any, span: Span) -> Any:
        return attrs.evolve(super()._window(entry, span), preemptions=0)


class CommitsWhatIsPlanned(ContinuousScheduler):
    """Pages are published when they are planned, before anything is written."""

    def _window(self, entry: Any, span: Span) -> Any:
        request = entry.request
        if span.store_until > self._kv.stored(request.request_id):
            self._kv.commit(request.request_id, request.stored_tokens, span.store_until)
        return super()._window(entry, span)


class CommitsAllThatIsFed(ContinuousScheduler):
    """Whatever a step feeds is published after it, blocks that still change included."""

    def update(self, plan: StepPlan, output: StepOutput) -> Sequence[Req]:
        done = super().update(plan, output)
        for window in plan.windows:
            entry = self._running.get(window.request_id)
            if entry is not None:
                tokens = entry.request.stored_tokens
                self._kv.commit(window.request_id, tokens, min(len(tokens), window.span.end))
        return done


class CommitsTheFilled(ContinuousScheduler):
    """A block is published as soon as all of its tokens are decided, one forward before it is stored."""

    def update(self, plan: StepPlan, output: StepOutput) -> Sequence[Req]:
        done = super().update(plan, output)
        for window in plan.windows:
            entry = self._running.get(window.request_id)
            if entry is not None:
                request = entry.request
                table = request.blocks  # type: ignore[attr-defined]
                end = table.frontier // table.block_size * table.block_size
                if self._kv.stored(request.request_id) < end <= window.span.end:
                    self._kv.commit(request.request_id, request.stored_tokens, end)
        return done


class CommitsBrokenSteps(ContinuousScheduler):
    """A step with broken logits is committed, too."""

    def update(self, plan: StepPlan, output: StepOutput) -> Sequence[Req]:
        for window, decision in zip(plan.windows, output.decisions, strict=True):
            entry = self._running.get(window.request_id)
            if (
                entry is not None
                and not decision.finite
                and window.span.store_until > self._kv.stored(window.request_id)
            ):
                self._kv.commit(window.request_id, entry.request.stored_tokens, window.span.store_until)
        return super().update(plan, output)


class DiesOfBrokenLogits(ContinuousScheduler):
    """A broken request takes everybody down."""

    def update(self, plan: StepPlan, output: StepOutput) -> Sequence[Req]:
        done = list(super().update(plan, output))
        if not all(decision.finite for decision in output.decisions):
            for entry in list(self._known.values()):
                entry.request.finish(CompletionReason.ERROR)
                self._forget(entry)
                done.append(entry.request)
        return done


class IgnoresBrokenLogits(ContinuousScheduler):
    """A broken request just goes on."""

    def update(self, plan: StepPlan, output: StepOutput) -> Sequence[Req]:
        decisions = tuple(attrs.evolve(decision, finite=True) for decision in output.decisions)
        return super().update(plan, attrs.evolve(output, decisions=decisions))


class SwapsDecisions(ContinuousScheduler):
    """Requests that were sampled at as many positions get each other's tokens."""

    def update(self, plan: StepPlan, output: StepOutput) -> Sequence[Req]:
        decisions = list(output.decisions)
        sizes = [len(decision.positions) for decision in decisions]
        for at in range(1, len(sizes)):
            if sizes[at] == sizes[at - 1] > 0:
                one, other = decisions[at - 1], decisions[at]
                decisions[at - 1] = attrs.evolve(one, tokens=other.tokens, accepted=other.accepted)
                decisions[at] = attrs.evolve(other, tokens=one.tokens, accepted=one.accepted)
        return super().update(plan, attrs.evolve(output, decisions=tuple(decisions)))


class FeedsTheWrongPages(ContinuousScheduler):
    """Two requests of a step are given each other's page tables, as far as they are equally long."""

    def schedule(self) -> StepPlan | None:
        plan = super().schedule()
        if plan is None or len(plan.windows) < 2:
            return plan
        first, second, *others = plan.windows
        if len(first.page_table) != len(second.page_table):
            return plan
        first, second = (
            attrs.evolve(first, page_table=second.page_table),
            attrs.evolve(second, page_table=first.page_table),
        )
        return attrs.evolve(plan, windows=(first, second, *others))


class ReturnsNobodyAtTheEnd(ContinuousScheduler):
    """Who ends together with others is not returned."""

    def update(self, plan: StepPlan, output: StepOutput) -> Sequence[Req]:
        done = super().update(plan, output)
        return [] if len(plan.windows) == 1 else done


class ReturnsTwice(ContinuousScheduler):
    """Who ended is returned again with the next step."""

    _late: Sequence[Req] = ()

    def update(self, plan: StepPlan, output: StepOutput) -> Sequence[Req]:
        late, self._late = self._late, super().update(plan, output)
        return [*late, *self._late]


class NeverDone(ContinuousScheduler):
    """Requests that ended stay in the books."""

    def has_work(self) -> bool:
        return self._arrivals > 0


class NamesNobody(ContinuousScheduler):
    """Plans do not say who ended."""

    def schedule(self) -> StepPlan | None:
        plan = super().schedule()
        return None if plan is None else attrs.evolve(plan, ended=())


class NamesThePreempted(ContinuousScheduler):
    """Who lost its pages counts as ended."""

    def _preempt(self, entry: Any) -> None:
        super()._preempt(entry)
        self._ended.append(entry.request.request_id)


class ForgetsAborted(ContinuousScheduler):
    """Only who came to an end is named, not who was aborted."""

    def abort(self, request_id: int, reason: CompletionReason = CompletionReason.ABORTED) -> bool:
        ended = list(self._ended)
        found = super().abort(request_id, reason)
        self._ended = ended
        return found


class LivePageTables(ContinuousScheduler):
    """Windows hold the arrays that it goes on working with."""

    def __init__(self, kv_cache: KVCacheManager, **settings: Any) -> None:
        super().__init__(kv_cache, **settings)
        self._tables: dict[int, Any] = {}

    def _window(self, entry: Any, span: Span) -> Any:
        window = super()._window(entry, span)
        buffer = self._tables.setdefault(window.request_id, np.zeros(100, dtype=np.int64))
        buffer[:] = 0
        buffer[: len(window.page_table)] = window.page_table
        return attrs.evolve(window, page_table=buffer)


class ListsInPlans(ContinuousScheduler):
    """Windows are a list."""

    def schedule(self) -> StepPlan | None:
        plan = super().schedule()
        return None if plan is None else attrs.evolve(plan, windows=list(plan.windows))


class PlansThatCannotTravel(ContinuousScheduler):
    """Windows hold what cannot be pickled."""

    def _window(self, entry: Any, span: Span) -> Any:
        class Table(np.ndarray):
            """Known here only."""

        window = super()._window(entry, span)
        return attrs.evolve(window, page_table=window.page_table.view(Table))


class NumbersStandStill(ContinuousScheduler):
    """Every plan is step 0."""

    def schedule(self) -> StepPlan | None:
        plan = super().schedule()
        return None if plan is None else attrs.evolve(plan, step=0)


_EVERYBODYS: dict[int, Any] = {}


class SharesTheBooks(ContinuousScheduler):
    """All schedulers of a process have one book of requests."""

    def __init__(self, kv_cache: KVCacheManager, **settings: Any) -> None:
        super().__init__(kv_cache, **settings)
        self._known = _EVERYBODYS


_GONE: list[int] = []


class SharesWhoEnded(ContinuousScheduler):
    """All schedulers of a process have one list of requests that ended."""

    def __init__(self, kv_cache: KVCacheManager, **settings: Any) -> None:
        super().__init__(kv_cache, **settings)
        self._ended = _GONE


class BlindToSeconds(ContinuousScheduler):
    """Knows nothing of second sequences."""

    def add(self, request: Req) -> None:
        super().add(request)
        self._known[request.request_id].sequences = (request.request_id,)


class OneTableForBoth(ContinuousScheduler):
    """Both readings of a guided request write the same pages."""

    def _window(self, entry: Any, span: Span) -> Any:
        window = super()._window(entry, span)
        return window if window.second_table is None else attrs.evolve(window, second_table=window.page_table)


class LosesTheSecond(ContinuousScheduler):
    """The second sequence of a guided request is not released."""

    def _release(self, entry: Any) -> None:
        for sequence in entry.sequences[:1]:
            self._kv.release(sequence)


class KeepsWhatItBorrows(ContinuousScheduler):
    """Pages for one step are never given back."""

    def _take_back(self, entry: Any, span: Span) -> None:
        entry.borrows = False


class IgnoresTheCap(ContinuousScheduler):
    """Any number of full passes in a step."""

    def __init__(self, kv_cache: KVCacheManager, *, max_refresh_tokens: int | None = None, **settings: Any) -> None:
        super().__init__(kv_cache, **settings)


class AnswersOnlyOne(ContinuousScheduler):
    """After the first abort nothing is served any more."""

    def abort(self, request_id: int, reason: CompletionReason = CompletionReason.ABORTED) -> bool:
        found = super().abort(request_id, reason)
        if found:
            self._budget = -math.inf  # type: ignore[assignment]
        return found

    def schedule(self) -> StepPlan | None:
        return None if self._budget < 0 else super().schedule()


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
    _mutant("swaps page tables", scheduler.check_scheduler_answers_are_those_of_lone_requests, FeedsTheWrongPages),
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
