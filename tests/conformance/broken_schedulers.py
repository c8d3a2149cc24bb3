"""Schedulers that lose pages, requests or their patience."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np

from diffulex_core.errors import PromptTooLong
from diffulex_core.kv_cache import PagedKVCache
from diffulex_core.protocols import KVCacheManager, Req
from diffulex_core.scheduler import ContinuousScheduler
from diffulex_core.types import CompletionReason, StepOutput, StepPlan


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
