"""A scheduler at work: it gets requests, pages and a runner, and is asked after each step what it did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import attrs
import numpy as np

from diffulex_core.protocols import Req, Scheduler
from diffulex_core.testing.check import CheckFailed
from diffulex_core.testing.fakes.hash_runner import HashRunner
from diffulex_core.testing.oracles.alone import Answer
from diffulex_core.testing.paging import cache_of
from diffulex_core.testing.patience import patience
from diffulex_core.testing.subjects import MakeKVCache, MakeScheduler
from diffulex_core.testing.workload import Asked, Setting, Witness, expected
from diffulex_core.types import CompletionReason, StepOutput, StepPlan, Window


class Runner(Protocol):
    """What executes a plan."""

    def execute(self, plan: StepPlan) -> StepOutput: ...


@attrs.define(eq=False)
class Live:
    """A request that is not done.

    Attributes:
        request: its state.
        answer: what must come out.
        work: steps that it may well take.
        added: step in which it came.
        last_fed: step in which it was fed last, or came.
        fed: how often it was fed.
        stored: positions below this were stored in their final form.
        losses: how often it had lost its pages when that was planned.
    """

    request: Witness
    answer: Answer
    work: int
    added: int
    last_fed: int
    fed: int = 0
    stored: int = 0
    losses: int = 0


class Serving:
    """A scheduler with its pages and a runner; every method raises `CheckFailed` where it breaks the protocol."""

    def __init__(
        self,
        make: MakeScheduler,
        make_cache: MakeKVCache,
        setting: Setting,
        *,
        num_pages: int = 200,
        page_size: int | None = None,
        budget: int = 1000,
        max_num_reqs: int = 8,
        prefix_caching: bool = True,
        max_refresh_tokens: int | None = None,
        runner: Runner | None = None,
    ) -> None:
        self.setting = setting
        self.page_size = page_size or setting.block_size
        self.num_pages = num_pages
        self.budget = budget
        self.max_num_reqs = max_num_reqs
        pattern = setting.pattern
        self.cache, made = cache_of(
            make_cache, num_pages=num_pages, page_size=self.page_size, pattern=pattern, prefix_caching=prefix_caching
        )
        self._ids = made
        self.scheduler: Scheduler = make(
            self.cache,
            max_num_reqs=max_num_reqs,
            max_num_batched_tokens=budget,
            block_size=setting.block_size,
            max_refresh_tokens=max_refresh_tokens,
        )
        self.network = HashRunner(pattern=pattern, num_pages=made, page_size=self.page_size)
        self._runner: Runner = runner or self.network
        self.live: dict[int, Live] = {}
        self.ended: dict[int, Live] = {}
        self.steps = 0
        self._losses: dict[int, int] = {}
        self._next = 0

    def add(self, ask: Asked) -> int:
        """Queue a request that fits; returns its number."""
        number, self._next = self._next, self._next + 1
        request, answer = ask.make(self.setting, number), expected(self.setting, ask)
        with patience("add()"):
            self.scheduler.add(request)
        work = len(answer.rows) + request.most_slots() // self.setting.block_size
        self.live[number] = Live(request, answer, work, added=self.steps, last_fed=self.steps)
        return number

    def abort(self, number: int) -> bool:
        """End a request."""
        with patience("abort()"):
            found = self.scheduler.abort(number)
        self.live.pop(number, None)
        return found

    def schedule(self) -> StepPlan:
        """The next plan; some request must be live."""
        with patience("schedule()"):
            plan = self.scheduler.schedule()
        if plan is None:
            raise CheckFailed(f"schedule() returned None although requests {sorted(self.live)} are not done.")
        self.steps += 1
        numbers = [window.request_id for window in plan.windows]
        if not numbers:
            raise CheckFailed(
                f"the plan of step {plan.step} has no windows; plan somebody, or preempt who is in the way."
            )
        if len(set(numbers)) != len(numbers):
            raise CheckFailed(f"the plan of step {plan.step} holds a request twice: {numbers}.")
        if strangers := set(numbers) - set(self.live):
            raise CheckFailed(f"the plan of step {plan.step} holds {sorted(strangers)}, which wait and run no more.")
        for window in plan.windows:
            self._covered(window)
        self._losses = {number: self.live[number].request.losses for number in numbers}
        return plan

    def execute(self, plan: StepPlan) -> StepOutput:
        """What the runner decides."""
        return self._runner.execute(plan)

    def update(self, plan: StepPlan, output: StepOutput) -> list[int]:
        """Apply a step; returns the numbers of the requests that ended with it, which are live no more."""
        with patience("update()"):
            returned = self.scheduler.update(plan, output)
        for window in plan.windows:
            live = self.live.get(window.request_id)
            if live is not None:
                live.fed += 1
                live.last_fed = self.steps
                live.stored = window.span.store_until
                live.losses = self._losses[window.request_id]
        done = [number for number, live in self.live.items() if live.request.completion is not None]
        self._returned(returned, done)
        self.ended |= {number: self.live.pop(number) for number in done}
        return done

    def step(self) -> list[int]:
        """Plan, execute, update; returns the numbers of the requests that ended."""
        plan = self.schedule()
        return self.update(plan, self.execute(plan))

    def drain(self) -> None:
        """Serve all requests to their end, with the answers that they get alone."""
        bound = self.steps + self.bound()
        while self.live:
            if self.steps >= bound:
                raise CheckFailed(
                    f"{self.steps} steps, and requests {sorted(self.live)} are not done; they fit, and alone they need "
                    f"{sum(len(live.answer.rows) for live in self.live.values())} steps in all."
                )
            for number in self.step():
                self.is_right(number)

    def bound(self) -> int:
        """Steps in which everybody must be done, whatever sensible schedule there is."""
        return 50 + 10 * sum(live.work for live in self.live.values())

    def is_right(self, number: int) -> None:
        """A request that ended has the answer that it gets alone."""
        live = self.ended[number]
        tokens, reason = tuple(live.request.output_tokens.tolist()), live.request.completion
        if reason is CompletionReason.ERROR and number in self.network.broken:
            return
        if tokens != live.answer.tokens or reason is not live.answer.reason:
            raise CheckFailed(
                f"request {number} over the prompt of {live.request.prompt_len} tokens answered {list(tokens)} "
                f"({reason}); when nobody else is there it answers {list(live.answer.tokens)} ({live.answer.reason}). "
                f"It was fed {live.fed} times and lost its pages {live.request.losses} times. {self}"
            )

    def within_budgets(self, plan: StepPlan) -> None:
        """Rows and requests of a plan are no more than allowed."""
        if plan.rows > self.budget:
            raise CheckFailed(f"step {plan.step} feeds {plan.rows} rows; max_num_batched_tokens is {self.budget}.")
        if len(plan.windows) > self.max_num_reqs:
            raise CheckFailed(
                f"step {plan.step} feeds {len(plan.windows)} requests; max_num_reqs is {self.max_num_reqs}."
            )

    def told_of_losses(self, plan: StepPlan) -> None:
        """Who is fed again what was stored was told that its pages are gone."""
        for window in plan.windows:
            live = self.live[window.request_id]
            if window.span.first_stored < live.stored and live.request.losses == live.losses:
                raise CheckFailed(
                    f"step {plan.step} stores positions of request {window.request_id} from {window.span.first_stored} "
                    f"on, although those below {live.stored} were stored: its pages are gone, and nobody called "
                    "preempted(). Call it whenever a request loses its pages."
                )
            if window.preemptions != live.request.losses:
                raise CheckFailed(
                    f"step {plan.step} says that request {window.request_id} lost its pages {window.preemptions} times "
                    f"(Window.preemptions); preempted() was called {live.request.losses} times."
                )

    def private(self, plan: StepPlan) -> None:
        """Pages that a plan writes have one holder in it."""
        tables = [table for window in plan.windows for table in _tables(window)]
        held = [page for table in tables for page in table]
        for window in plan.windows:
            for table in _tables(window):
                for page in table[self._first_slot(window) // self.page_size : -(-window.span.slots // self.page_size)]:
                    if held.count(page) > 1:
                        raise CheckFailed(
                            f"step {plan.step}: request {window.request_id} writes page {page}, which stands "
                            f"{held.count(page)} times in the plan's page tables. A written page has one holder."
                        )

    def all_free(self, when: str) -> None:
        """No page is in use."""
        if self.cache.num_free_pages != self.num_pages:
            raise CheckFailed(
                f"{self.cache.num_free_pages} of {self.num_pages} pages are free {when}, and no request is live. "
                "Release the sequences of every request that ends or loses its place. "
                f"{self}"
            )

    def __str__(self) -> str:
        return (
            f"[{self.num_pages} pages of {self.page_size}, {self.budget} rows, {self.max_num_reqs} requests, "
            f"{self.setting}]"
        )

    def _covered(self, window: Window) -> None:
        """The page table reaches as far as the span stores and reads, and holds pages."""
        span = window.span
        if len(span.tokens) == 0:
            raise CheckFailed(f"request {window.request_id} is planned with no rows.")
        slots = max(span.slots, span.visible_end or 0)
        for table in _tables(window):
            if len(table) * self.page_size < slots:
                raise CheckFailed(
                    f"request {window.request_id} needs {slots} slots in this step, and its page table covers "
                    f"{len(table)} pages of {self.page_size}. Reserve `span.slots` before planning a span."
                )
            if not all(0 <= page < self._ids for page in table):
                raise CheckFailed(f"request {window.request_id}'s page table {table} holds what is no page.")
        if span.guidance is not None and window.second_table is None:
            raise CheckFailed(f"request {window.request_id} has guidance, and its window no `second_table`.")

    def _first_slot(self, window: Window) -> int:
        span = window.span
        return span.first_stored if span.packed is None else span.packed

    def _returned(self, returned: Sequence[Req], done: Sequence[int]) -> None:
        numbers = sorted(request.request_id for request in returned)
        if numbers != sorted(done):
            raise CheckFailed(
                f"update() returned requests {numbers}; those that ended with the step are {sorted(done)}. "
                "Return each request once, in the step with which it ended."
            )


def _tables(window: Window) -> list[list[int]]:
    tables = [window.page_table, window.second_table]
    return [np.asarray(table).tolist() for table in tables if table is not None]
