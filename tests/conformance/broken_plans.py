"""Schedulers whose plans, or what comes of them, are wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np

from diffulex_core.errors import OutOfPages
from diffulex_core.protocols import KVCacheManager, Req
from diffulex_core.scheduler import ContinuousScheduler
from diffulex_core.types import CompletionReason, Span, StepOutput, StepPlan


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


class DrawsTheSameAgain(ContinuousScheduler):
    """Windows do not count the sampling steps."""

    def _window(self, entry: Any, span: Span) -> Any:
        return attrs.evolve(super()._window(entry, span), draw=0)


class MistakesThePrompt(ContinuousScheduler):
    """What was answered so far counts as prompt."""

    def _window(self, entry: Any, span: Span) -> Any:
        return attrs.evolve(super()._window(entry, span), prompt_len=len(entry.request.stored_tokens))


class OneForAll(ContinuousScheduler):
    """Everybody is sampled with the parameters of the first of the plan."""

    def schedule(self) -> StepPlan | None:
        plan = super().schedule()
        if plan is None:
            return None
        params = plan.windows[0].params
        return attrs.evolve(plan, windows=tuple(attrs.evolve(window, params=params) for window in plan.windows))


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
