"""Schedulers that are right and unlike the core's: the kit must not complain of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import attrs

from diffulex_core.errors import PromptTooLong
from diffulex_core.protocols import KVCacheManager, Req
from diffulex_core.scheduler import ContinuousScheduler
from diffulex_core.types import CompletionReason, Span, StepOutput, StepPlan, Window


class PlainScheduler:
    """First come, first served: whoever starts has all the pages that he may need, and nobody ever gives way.

    Running requests take turns in choosing their rows. It knows nothing of second sequences or borrowed pages.
    """

    def __init__(
        self,
        kv_cache: KVCacheManager,
        *,
        max_num_reqs: int,
        max_num_batched_tokens: int,
        block_size: int,
        max_refresh_tokens: int | None = None,
    ) -> None:
        self._kv = kv_cache
        self._most = max_num_reqs
        self._rows = max_num_batched_tokens
        self._waiting: deque[Req] = deque()
        self._running: deque[Req] = deque()
        self._ended: list[int] = []
        self._steps = 0

    def add(self, request: Req) -> None:
        too_many_slots = request.most_slots() > self._kv.num_pages * self._kv.page_size
        if too_many_slots or request.most_rows() > self._rows:
            raise PromptTooLong("it never fits")
        self._waiting.append(request)

    def abort(self, request_id: int, reason: CompletionReason = CompletionReason.ABORTED) -> bool:
        for queue in (self._waiting, self._running):
            for request in queue:
                if request.request_id == request_id:
                    request.finish(reason)
                    queue.remove(request)
                    if queue is self._running:
                        self._kv.release(request_id)
                        self._ended.append(request_id)
                    return True
        return False

    def has_work(self) -> bool:
        return bool(self._waiting or self._running)

    def schedule(self) -> StepPlan | None:
        if not self.has_work():
            return None
        self._start()
        left, spans = self._rows, dict[int, Span]()
        self._running.rotate(-1)
        for request in self._running:
            span = request.plan(self._kv.stored(request.request_id), left)
            if span is not None:
                spans[request.request_id] = span
                left -= span.rows
        windows = tuple(self._window(request, spans) for request in self._running if request.request_id in spans)
        ended, self._ended = tuple(self._ended), []
        self._steps += 1
        return StepPlan(step=self._steps, windows=windows, ended=ended)

    def update(self, plan: StepPlan, output: StepOutput) -> Sequence[Req]:
        running = {request.request_id: request for request in self._running}
        done = []
        for window, decision in zip(plan.windows, output.decisions, strict=True):
            request = running.get(window.request_id)
            if request is None:
                continue
            if decision.finite:
                request.apply(window.span, decision)
                self._kv.commit(request.request_id, request.known_tokens, window.span.store_until)
            else:
                request.finish(CompletionReason.ERROR)
            if request.completion is not None:
                self._running.remove(request)
                self._kv.release(request.request_id)
                self._ended.append(request.request_id)
                done.append(request)
        return done

    def check_integrity(self) -> None:
        self._kv.check_integrity()

    def _start(self) -> None:
        while self._waiting and len(self._running) < self._most:
            request = self._waiting[0]
            self._kv.open(request.request_id, request.known_tokens, request.prompt_len)
            held = len(self._kv.page_table(request.request_id))
            if -(-request.most_slots() // self._kv.page_size) - held > self._kv.num_free_pages:
                self._kv.release(request.request_id)
                return
            self._kv.reserve(request.request_id, request.most_slots())
            self._running.append(self._waiting.popleft())

    def _window(self, request: Req, spans: dict[int, Span]) -> Window:
        return Window(
            request_id=request.request_id,
            span=spans[request.request_id],
            prompt_len=request.prompt_len,
            page_table=self._kv.page_table(request.request_id),
            params=request.params,
            draw=request.draws,
        )


class OneAtATime(ContinuousScheduler):
    """Batches of one."""

    def __init__(self, kv_cache: KVCacheManager, *, max_num_reqs: int, **settings: Any) -> None:
        super().__init__(kv_cache, max_num_reqs=1, **settings)


class GivesWayAfterTheStep(ContinuousScheduler):
    """Every seventh step the youngest gives way, right after it, so that others have more pages."""

    def update(self, plan: StepPlan, output: StepOutput) -> Sequence[Req]:
        done = super().update(plan, output)
        if plan.step % 7 == 6 and len(self._running) > 1:
            self._preempt(max(self._running.values(), key=lambda entry: entry.arrival))
        return done


class CountsFromAHundred(ContinuousScheduler):
    """Steps are numbered otherwise, and only who was fed is named as ended."""

    def __init__(self, kv_cache: KVCacheManager, **settings: Any) -> None:
        super().__init__(kv_cache, **settings)
        self._fed: set[int] = set()

    def schedule(self) -> StepPlan | None:
        plan = super().schedule()
        if plan is None:
            return None
        plan = attrs.evolve(
            plan, step=100 + 3 * plan.step, ended=tuple(number for number in plan.ended if number in self._fed)
        )
        self._fed |= {window.request_id for window in plan.windows}
        return plan
