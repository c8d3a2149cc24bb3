"""Checks of schedulers: requests that own two sequences, and requests that borrow pages for one step."""

from __future__ import annotations

from diffulex_core.sparse import SparseConfig
from diffulex_core.testing.canvases import CanvasAsk
from diffulex_core.testing.check import AnyCheck, CheckFailed, check
from diffulex_core.testing.effort import Effort
from diffulex_core.testing.serving import Serving
from diffulex_core.testing.subjects import SchedulerSubject
from diffulex_core.testing.workload import Setting
from diffulex_core.types import StepPlan

_CANVAS = Setting(whole_canvas=True)


def _prompt(number: int, length: int) -> tuple[int, ...]:
    return tuple((at + 3 * number) % 6 for at in range(length))


@check(SchedulerSubject, level="recommended")
def check_scheduler_serves_two_sequences(subject: SchedulerSubject, effort: Effort) -> None:
    """A guided request gets pages for both of its sequences, or waits; its rows count twice, and all pages return.

    Why: classifier-free guidance reads every prompt twice. A scheduler without a second page table lets both readings
    write the same pages, and one that counts their rows once exceeds the budget.
    Fix: where `isinstance(request, GuidedReq) and request.guided`, open two sequences, reserve both or none, pass the
    other's table as `Window.second_table`, and release both.
    """
    for num_pages, budget in ((14, 48), (9, 30), (40, 200)):
        serving = Serving(
            subject.factory, subject.kv_cache, _CANVAS, num_pages=num_pages, budget=budget, max_num_reqs=3
        )
        for number in range(5):
            serving.add(CanvasAsk(prompt=_prompt(number, 5), length=7 + number % 2, scale=1.5 * (number % 2)))
        aborted = False
        for _ in range(serving.bound()):
            if not serving.live:
                break
            plan = serving.schedule()
            serving.within_budgets(plan)
            serving.private(plan)
            for number in serving.update(plan, serving.execute(plan)):
                serving.is_right(number)
            guided = [
                window.request_id
                for window in plan.windows
                if window.request_id % 2 and window.request_id in serving.live
            ]
            if guided and not aborted:
                aborted = serving.abort(guided[0])
        if serving.live:
            raise CheckFailed(f"requests {sorted(serving.live)} are not done after {serving.steps} steps. {serving}")
        serving.all_free("after requests with two sequences")


@check(SchedulerSubject, level="recommended")
def check_scheduler_takes_borrowed_pages_back(subject: SchedulerSubject, effort: Effort) -> None:
    """Pages behind `span.held` are given back after the step, and full passes keep within `max_refresh_tokens`.

    Why: with a sparse cache many requests run at once only because each needs the pages of a full pass for one step.
    Fix: after a step call `kv_cache.truncate(sequence, span.held)` where it is not None, for all sequences of the
    request, and place a second full pass only where the cap has room.
    """
    for num_pages, cap in ((16, None), (30, 24), (13, 1)):
        serving = Serving(
            subject.factory,
            subject.kv_cache,
            _CANVAS,
            num_pages=num_pages,
            budget=80,
            max_num_reqs=4,
            max_refresh_tokens=cap,
            prefix_caching=False,
        )
        for number in range(5):
            sparse = SparseConfig(retention_ratio=0.3, delay_step=number % 2, refresh_every=3)
            serving.add(CanvasAsk(prompt=_prompt(number, 9), length=12, block=4, sparse=sparse, scale=number // 4))
        needed: dict[int, int] = {}
        for _ in range(serving.bound()):
            if not serving.live:
                break
            plan = serving.schedule()
            serving.within_budgets(plan)
            _within_cap(plan, cap)
            for number in serving.update(plan, serving.execute(plan)):
                serving.is_right(number)
            needed |= {window.request_id: _kept(serving, plan, index) for index, window in enumerate(plan.windows)}
            used = serving.num_pages - serving.cache.num_free_pages
            still = {number: needed[number] for number in serving.live if number in needed}
            if used > sum(still.values()):
                raise CheckFailed(
                    f"after step {plan.step} {used} pages are in use; what each live request still needs (`span.held`) "
                    f"takes {still} pages. {serving}"
                )
        if serving.live:
            raise CheckFailed(f"requests {sorted(serving.live)} are not done after {serving.steps} steps. {serving}")
        serving.all_free("after requests that borrowed pages")


def _within_cap(plan: StepPlan, cap: int | None) -> None:
    full = [window.span.rows for window in plan.windows if window.span.full_pass]
    if cap is not None and len(full) > 1 and sum(full) > cap:
        raise CheckFailed(f"step {plan.step} feeds full passes of {full} rows; max_refresh_tokens is {cap}.")


def _kept(serving: Serving, plan: StepPlan, index: int) -> int:
    """Pages that the request of a window still needs after its step."""
    span = plan.windows[index].span
    slots = span.slots if span.held is None else span.held
    return -(-slots // serving.page_size) * (1 if span.guidance is None else 2)


CHECKS: tuple[AnyCheck, ...] = (check_scheduler_serves_two_sequences, check_scheduler_takes_borrowed_pages_back)
