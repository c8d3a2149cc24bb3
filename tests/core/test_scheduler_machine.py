"""The core's scheduler under any history: what it promises besides what the conformance kit asks of every scheduler."""

from __future__ import annotations

from hypothesis import settings
from hypothesis.stateful import invariant

from diffulex_core.scheduler import ContinuousScheduler
from diffulex_core.testing.machines import scheduler_machine
from diffulex_core.types import StepPlan


class Serving(scheduler_machine(ContinuousScheduler)):  # type: ignore[misc]  # a class that is made at run time
    """Requests start in the order in which they came, and the oldest is fed again soon."""

    def planned(self, plan: StepPlan) -> None:
        serving = self.at_work
        numbers = [window.request_id for window in plan.windows]
        never_fed = sorted(number for number, live in serving.live.items() if not live.fed)
        new = sorted(number for number in numbers if not serving.live[number].fed)
        assert new == never_fed[: len(new)], "somebody jumped the queue"
        oldest = min(serving.live)
        if oldest not in numbers:
            waited = serving.steps - serving.live[oldest].last_fed
            assert waited <= 2 * serving.max_num_reqs + 2, "the oldest request starves"
        assert plan.rows == sum(window.span.end - window.span.start for window in plan.windows)

    @invariant()
    def counts_agree(self) -> None:
        if self.serving is not None and not self.failed:
            scheduler = self.at_work.scheduler
            assert isinstance(scheduler, ContinuousScheduler)
            assert scheduler.num_waiting + scheduler.num_running == len(self.at_work.live)
            assert scheduler.num_running <= self.at_work.max_num_reqs


Serving.TestCase.settings = settings(deadline=None, stateful_step_count=40)
TestServing = Serving.TestCase
