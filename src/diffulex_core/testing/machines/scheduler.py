"""A scheduler under any history: requests come, are aborted, break, and compete for pages, rows and places."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from diffulex_core.errors import PromptTooLong
from diffulex_core.kv_cache import PagedKVCache
from diffulex_core.testing.check import CheckFailed
from diffulex_core.testing.patience import patience
from diffulex_core.testing.serving import Serving
from diffulex_core.testing.subjects import MakeKVCache, MakeScheduler
from diffulex_core.testing.workload import Ask, Setting, asks, settings
from diffulex_core.types import CompletionReason, StepPlan

_PICK = st.integers(0, 9)


class SchedulerMachine(RuleBasedStateMachine):
    """Requests come and go while pages, rows and places are short. A subclass says whose scheduler it is."""

    make: MakeScheduler
    make_cache: MakeKVCache

    def __init__(self) -> None:
        super().__init__()
        self.serving: Serving | None = None
        self.failed = False

    @initialize(
        setting=settings(),
        blocks_per_page=st.sampled_from([1, 2]),
        slots=st.sampled_from([12, 28, 40, 200]),
        extra_rows=st.sampled_from([-3, 0, 0, 1, 4, 9, 200]),
        max_num_reqs=st.integers(1, 4),
        prefix_caching=st.booleans(),
    )
    def start(
        self,
        setting: Setting,
        blocks_per_page: int,
        slots: int,
        extra_rows: int,
        max_num_reqs: int,
        *,
        prefix_caching: bool,
    ) -> None:
        """An engine with few pages."""
        page_size = setting.block_size * blocks_per_page
        self.serving = Serving(
            type(self).make,
            type(self).make_cache,
            setting,
            num_pages=-(-slots // page_size),
            page_size=page_size,
            budget=max(1, max(2, setting.buffer_size) * setting.block_size + extra_rows),
            max_num_reqs=max_num_reqs,
            prefix_caching=prefix_caching,
        )

    @property
    def at_work(self) -> Serving:
        """What the history is played on."""
        assert self.serving is not None
        return self.serving

    @rule(ask=asks())
    def adds(self, ask: Ask) -> None:
        """Somebody comes; who can never fit is refused."""
        serving = self.at_work
        request = ask.make(serving.setting, -7)
        pages = -(-request.most_slots() // serving.page_size)
        if pages <= serving.num_pages and request.most_rows() <= serving.budget:
            self._watch(lambda: serving.add(ask))
            return
        try:
            with patience("add()"):
                serving.scheduler.add(request)
        except PromptTooLong:
            return
        self._fail(
            f"add() took a request of {pages} pages and {request.most_rows()} rows in one step, which can never fit. "
            f"Raise PromptTooLong. {serving}"
        )

    @precondition(lambda self: self.serving is not None and self.serving.live)
    @rule(times=st.integers(1, 6))
    def steps(self, times: int) -> None:
        """A few steps."""
        for _ in range(times):
            if self.at_work.live:
                self._watch(self._step)

    @precondition(lambda self: self.serving is not None and self.serving.live)
    @rule(pick=_PICK)
    def aborts(self, pick: int) -> None:
        """Somebody waiting or running is taken out."""
        self._watch(lambda: self._abort(self._pick(pick)))

    @precondition(lambda self: self.serving is not None and self.serving.live)
    @rule(pick=_PICK)
    def aborts_in_flight(self, pick: int) -> None:
        """Somebody is taken out while a step runs."""
        self._watch(lambda: self._step(self._pick(pick)))

    @rule(number=st.integers(-1, 40))
    def aborts_nobody(self, number: int) -> None:
        """An abort of somebody who is gone, or never was there."""
        if number not in self.at_work.live and self.at_work.abort(number):
            self._fail(f"abort({number}) returned True, and no such request is live.")

    @precondition(lambda self: self.serving is not None and self.serving.live)
    @rule(pick=_PICK)
    def breaks(self, pick: int) -> None:
        """From now on a request's logits are not finite."""
        self.at_work.network.broken.add(self._pick(pick))

    @invariant()
    def books_balance(self) -> None:
        """Who is live is known, and pages are in use for them only."""
        if self.serving is not None:
            self._watch(self._balance)

    def teardown(self) -> None:
        """Everybody is served to the end."""
        if self.serving is None or self.failed:
            return
        self.serving.drain()
        self._balance()
        if self.serving.scheduler.schedule() is not None:
            raise CheckFailed("schedule() returned a plan although nobody waits or runs.")

    def planned(self, plan: StepPlan) -> None:
        """Called with each plan before it is executed; a subclass may look at it."""

    def _step(self, aborted: int | None = None) -> None:
        serving = self.at_work
        plan = serving.schedule()
        serving.within_budgets(plan)
        serving.told_of_losses(plan)
        serving.private(plan)
        self.planned(plan)
        output = serving.execute(plan)
        self._kept_for_the_living()
        if aborted is not None:
            self._abort(aborted)
        for number in serving.update(plan, output):
            serving.is_right(number)
        self._nobody_starves(plan)

    def _abort(self, number: int) -> None:
        live = self.at_work.live[number]
        if not self.at_work.abort(number):
            raise CheckFailed(f"abort({number}) returned False, and the request is live.")
        if live.request.completion is not CompletionReason.ABORTED:
            raise CheckFailed(f"request {number} was aborted and completed with {live.request.completion}.")
        given = tuple(live.request.output_tokens.tolist())
        if given != live.answer.tokens[: len(given)]:
            raise CheckFailed(
                f"request {number} had answered {given} when it was aborted, not {live.answer.tokens} ..."
            )

    def _kept_for_the_living(self) -> None:
        """What the runner keeps for requests that ended is dropped with the next plan."""
        if gone := set(self.at_work.network.kept) - set(self.at_work.live):
            raise CheckFailed(f"no plan's `ended` named {sorted(gone)}, so the runner keeps what they needed for ever.")

    def _nobody_starves(self, plan: StepPlan) -> None:
        serving = self.at_work
        for number, live in serving.live.items():
            ahead = sum(other.work for each, other in serving.live.items() if each < number)
            if serving.steps - live.last_fed > 60 + 20 * (live.work + ahead) and number == min(serving.live):
                raise CheckFailed(f"request {number} was fed last in step {live.last_fed}; this is {serving.steps}.")

    def _balance(self) -> None:
        serving = self.at_work
        if serving.scheduler.has_work() != bool(serving.live):
            raise CheckFailed(
                f"has_work() is {serving.scheduler.has_work()}, and {len(serving.live)} requests are live."
            )
        if not serving.live:
            serving.all_free("after this history")
        serving.scheduler.check_integrity()
        serving.cache.check_integrity()

    def _pick(self, pick: int) -> int:
        return sorted(self.at_work.live)[pick % len(self.at_work.live)]

    def _fail(self, message: str) -> None:
        self.failed = True
        raise CheckFailed(message)

    def _watch(self, act: object) -> None:
        """Run a part of the history; after a failure nothing more is tried."""
        assert callable(act)
        self.failed = True
        act()
        self.failed = False


def scheduler_machine(make: MakeScheduler, make_cache: MakeKVCache = PagedKVCache) -> type[SchedulerMachine]:
    """A state machine for a scheduler.

    `effort.run_machine(scheduler_machine(MyScheduler))` runs it, and so does pytest with
    `TestMine = scheduler_machine(MyScheduler).TestCase`.

    Args:
        make: factory of the scheduler, called as components of that kind are.
        make_cache: factory of the cache that it works with.
    """
    return type("Serving", (SchedulerMachine,), {"make": staticmethod(make), "make_cache": staticmethod(make_cache)})
