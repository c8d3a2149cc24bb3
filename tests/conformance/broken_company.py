"""Schedulers that are wrong where somebody leaves, nobody is there, or what was computed is private."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from diffulex_core.protocols import Req
from diffulex_core.scheduler import ContinuousScheduler
from diffulex_core.types import StepOutput, StepPlan


class ClosesUpDecisions(ContinuousScheduler):
    """Where somebody left while the step ran, those behind get the decisions of those before them."""

    def update(self, plan: StepPlan, output: StepOutput) -> Sequence[Req]:
        live = tuple(window for window in plan.windows if window.request_id in self._running)
        decisions = output.decisions[: len(live)]
        return super().update(attrs.evolve(plan, windows=live), attrs.evolve(output, decisions=decisions))


class ForgetsWhoEndedLast(ContinuousScheduler):
    """Who ended is forgotten when nothing is left to plan."""

    def schedule(self) -> StepPlan | None:
        plan = super().schedule()
        if plan is None:
            self._ended.clear()
        return plan


class CommitsAllTokens(ContinuousScheduler):
    """Whatever a request has stored may serve others."""

    def update(self, plan: StepPlan, output: StepOutput) -> Sequence[Req]:
        for window, decision in zip(plan.windows, output.decisions, strict=True):
            entry = self._running.get(window.request_id)
            if entry is not None and decision.finite and len(entry.sequences) == 1:
                self._kv.commit(window.request_id, entry.request.stored_tokens, window.span.store_until)
        return super().update(plan, output)
