"""The scheduler under any history: requests come, are aborted, break, and compete for pages, rows and places."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from diffulex_core.blocks import BlockRequest
from diffulex_core.errors import PromptTooLong
from diffulex_core.types import CompletionReason, StepPlan
from tests.core.oracles import Answer, Ask, Setting, decode_alone
from tests.core.serving import Service, asks, request_of, settings_of_engines

PICK = st.integers(0, 9)


@attrs.define
class Live:
    """A request that the test still expects to be served."""

    request: BlockRequest
    answer: Answer
    fed: int = 0
    last_fed: int = 0
    """Step in which it was fed last, or was added."""


class Serving(RuleBasedStateMachine):
    """Requests come and go while pages, rows and places are short."""

    @initialize(
        setting=settings_of_engines(),
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
        self.setting = setting
        self.page_size = setting.block_size * blocks_per_page
        self.num_pages = -(-slots // self.page_size)
        self.budget = max(1, max(2, setting.buffer_size) * setting.block_size + extra_rows)
        self.max_num_reqs = max_num_reqs
        self.service = Service.of(
            setting,
            num_pages=self.num_pages,
            page_size=self.page_size,
            budget=self.budget,
            max_num_reqs=max_num_reqs,
            prefix_caching=prefix_caching,
        )
        self.live: dict[int, Live] = {}
        self.gone: list[int] = []
        self.next = 0
        self.step = 0
        self.idle_steps = 0

    @rule(ask=asks())
    def add(self, ask: Ask) -> None:
        request = request_of(self.setting, ask, self.next)
        answer = decode_alone(self.setting, ask)
        if self._pages(ask) > self.num_pages or self._rows(ask, answer) > self.budget:
            before = (self.service.scheduler.num_waiting, self.service.scheduler.num_running)
            with pytest.raises(PromptTooLong):
                self.service.scheduler.add(request)
            assert (self.service.scheduler.num_waiting, self.service.scheduler.num_running) == before
            assert not self.service.scheduler.abort(self.next)
            return
        self.service.scheduler.add(request)
        with pytest.raises(KeyError):
            self.service.scheduler.add(request)
        self.live[self.next] = Live(request, answer, last_fed=self.step)
        self.next += 1

    @precondition(lambda self: self.live)
    @rule(times=st.integers(1, 6))
    def steps(self, times: int) -> None:
        for _ in range(times):
            if self.live:
                self._step()

    @precondition(lambda self: self.live)
    @rule(pick=PICK)
    def aborts(self, pick: int) -> None:
        number = self._pick(pick)
        live = self.live.pop(number)
        assert self.service.scheduler.abort(number)
        assert live.request.completion is CompletionReason.ABORTED
        self._is_prefix(live)
        self.gone.append(number)

    @rule(number=st.integers(-1, 40))
    def aborts_nobody(self, number: int) -> None:
        if number not in self.live:
            assert not self.service.scheduler.abort(number)

    @precondition(lambda self: self.live)
    @rule(pick=PICK)
    def breaks(self, pick: int) -> None:
        """From now on the request's logits are not finite."""
        self.service.runner.broken.add(self._pick(pick))

    @invariant()
    def books_balance(self) -> None:
        scheduler = self.service.scheduler
        scheduler.check_integrity()
        assert scheduler.num_waiting + scheduler.num_running == len(self.live)
        assert scheduler.num_running <= self.max_num_reqs
        assert scheduler.has_work() == bool(self.live)
        if not self.live:
            assert self.service.cache.num_free_pages == self.num_pages

    def teardown(self) -> None:
        bound = self.step + 20 + 4 * sum(self._work(live) for live in self.live.values())
        while self.live:
            assert self.step < bound, "the scheduler makes no progress"
            self._step()
        self.books_balance()
        assert self.service.scheduler.schedule() is None

    def _step(self) -> None:
        plan = self.service.scheduler.schedule()
        assert plan is not None
        self.step += 1
        self._check(plan)
        output = self.service.runner.execute(plan)
        assert set(self.service.runner.kept) <= set(self.live), "rows of requests that ended are kept"
        done = {request.request_id for request in self.service.scheduler.update(plan, output)}
        for window in plan.windows:
            live = self.live[window.request_id]
            live.fed += 1
            assert live.request.nfe <= live.fed
            if window.request_id in self.service.runner.broken:
                assert live.request.completion is CompletionReason.ERROR
                self._is_prefix(live)
            elif live.request.completion is not None:
                assert live.request.completion.value == live.answer.reason
                assert tuple(live.request.output_tokens.tolist()) == live.answer.tokens
                assert live.request.nfe == live.fed
            assert (window.request_id in done) == (live.request.completion is not None)
        for number in done:
            del self.live[number]
            self.gone.append(number)

    def _check(self, plan: StepPlan) -> None:
        """Budgets, order of arrival, and who holds which page."""
        numbers = [window.request_id for window in plan.windows]
        assert 0 < len(numbers) == len(set(numbers)) <= self.max_num_reqs
        assert set(numbers) <= set(self.live)
        assert plan.rows == sum(window.span.end - window.span.start for window in plan.windows)
        assert 0 < plan.rows <= self.budget
        never_fed = [number for number, live in self.live.items() if not live.fed]
        new = [number for number in numbers if not self.live[number].fed]
        assert sorted(new) == sorted(never_fed)[: len(new)], "somebody jumped the queue"
        written: list[int] = []
        held: list[int] = []
        for window in plan.windows:
            table = window.page_table.tolist()
            assert window.span.end <= len(table) * self.page_size
            assert window.span.start <= window.span.store_until <= window.span.end
            written += table[max(window.span.start, window.span.store_from) // self.page_size :]
            held += table
        assert all(held.count(page) == 1 for page in written), "a page that is written has two holders"
        for number in numbers:
            self.live[number].last_fed = self.step
        oldest = self.live[min(self.live)]
        assert self.step - oldest.last_fed <= 2 * self.max_num_reqs + 2, "the oldest request starves"

    def _pick(self, pick: int) -> int:
        return sorted(self.live)[pick % len(self.live)]

    def _pages(self, ask: Ask) -> int:
        limit = min(len(ask.prompt) + ask.max_tokens, self.setting.max_model_len)
        whole_blocks = -(-limit // self.setting.block_size) * self.setting.block_size
        return -(-whole_blocks // self.page_size)

    def _rows(self, ask: Ask, answer: Answer) -> int:
        """The most rows that must be fed at once."""
        block = self.setting.block_size
        limit = min(len(ask.prompt) + ask.max_tokens, self.setting.max_model_len)
        blocks = -(-limit // block) - len(ask.prompt) // block
        row_before = self.setting.shifted and not self.setting.full_prefix
        running = min(max(2, self.setting.buffer_size), blocks) * block + row_before
        return max(running, answer.rows[0] * self.setting.full_prefix)

    def _work(self, live: Live) -> int:
        return len(live.answer.rows) + live.request.most_slots() // self.setting.block_size

    def _is_prefix(self, live: Live) -> None:
        given = tuple(live.request.output_tokens.tolist())
        assert given == live.answer.tokens[: len(given)]


Serving.TestCase.settings = settings(deadline=None, stateful_step_count=40, max_examples=4 * settings().max_examples)
TestServing = Serving.TestCase
