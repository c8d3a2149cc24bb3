"""Checks of schedulers: how requests end, and what is left of them."""

from __future__ import annotations

from diffulex_core.testing.check import AnyCheck, CheckFailed, check
from diffulex_core.testing.effort import Effort
from diffulex_core.testing.serving import Serving
from diffulex_core.testing.subjects import SchedulerSubject
from diffulex_core.testing.workload import Setting, ask
from diffulex_core.types import CompletionReason

_PATTERNS = (Setting(), Setting(full_prefix=True))


@check(SchedulerSubject)
def check_scheduler_gives_pages_back(subject: SchedulerSubject, effort: Effort) -> None:
    """When nobody is live every page is free: after an answer, an error, a preemption, an abort anywhere.

    Why: a page that leaks is gone until the engine is restarted; a server loses a little of its cache with every
    request of the kind that leaks, and stands still in the end.
    Fix: release every sequence of a request wherever it ends or is preempted, once; the message says after what.
    """
    for setting in _PATTERNS:
        for what in ("requests that came to their end", "a request with broken logits", "requests that were preempted"):
            pages = 8 if what == "requests that were preempted" else 60
            serving = Serving(subject.factory, subject.kv_cache, setting, num_pages=pages, budget=60)
            for number in range(3):
                serving.add(ask(7, first=number, max_tokens=20))
            if what == "a request with broken logits":
                serving.network.broken.add(1)
            serving.drain()
            serving.all_free(f"after {what}")
    for steps in (0, 1, 3):
        for in_flight in (False, True):
            serving = Serving(subject.factory, subject.kv_cache, Setting(), num_pages=60, budget=40, max_num_reqs=2)
            for number in range(4):
                serving.add(ask(7, first=number, max_tokens=20))
            for _ in range(steps):
                serving.step()
            plan = serving.schedule() if in_flight else None
            for number in range(4):
                serving.abort(number)
            serving.all_free(f"after {steps} steps and an abort of all{' while a step ran' * in_flight}")
            if plan is not None:
                serving.update(plan, serving.execute(plan))
                serving.all_free("after the step in which all were aborted")
    _many_come_and_go(subject)


def _many_come_and_go(subject: SchedulerSubject) -> None:
    """For what happens once in a while only."""
    serving = Serving(subject.factory, subject.kv_cache, Setting(), num_pages=16, budget=40, max_num_reqs=3)
    for number in range(50):
        added = serving.add(ask(2 + number % 7, first=number % 5, max_tokens=1 + number % 6))
        serving.step()
        if number % 9 == 4 and added in serving.live:
            serving.abort(added)
    serving.drain()
    serving.all_free("after 50 requests")


@check(SchedulerSubject)
def check_scheduler_aborts_at_once(subject: SchedulerSubject, effort: Effort) -> None:
    """`abort` ends a waiting or running request now: pages free, reason set, not fed again; a second one finds nobody.

    Why: whoever stops reading wants his place to go to others now; and a client that cancels twice, or too late, must
    not hit somebody else.
    Fix: in `abort`, call `request.finish(reason)`, release its sequences and forget it; return False for an id that is
    not live; ignore windows of ended requests in `update`.
    """
    for setting in _PATTERNS:
        for steps in (0, 1, 2, 5):
            for victim in (0, 1, 2):
                serving = Serving(
                    subject.factory, subject.kv_cache, setting, num_pages=40, max_num_reqs=2, prefix_caching=False
                )
                for number in range(3):
                    serving.add(ask(6, first=3 * number, max_tokens=15))
                held: dict[int, int] = {}
                for _ in range(steps):
                    plan = serving.schedule()
                    serving.update(plan, serving.execute(plan))
                    held = {window.request_id: len(window.page_table) for window in plan.windows}
                _abort(serving, victim, held.get(victim, 0))
                serving.drain()
                if serving.abort(victim) or serving.abort(0) or serving.abort(12345):
                    raise CheckFailed("abort() returned True for a request that had ended before, or never came.")
                serving.all_free("after an abort")


def _abort(serving: Serving, victim: int, held: int) -> None:
    if victim not in serving.live:
        return
    request, free = serving.live[victim].request, serving.cache.num_free_pages
    if not serving.scheduler.abort(victim, CompletionReason.STOP_STRING):
        raise CheckFailed(f"abort() returned False for request {victim}, which is live.")
    del serving.live[victim]
    if request.completion is not CompletionReason.STOP_STRING:
        raise CheckFailed(f"abort(reason=STOP_STRING) left the request with completion {request.completion}.")
    if serving.cache.num_free_pages < free + held:
        raise CheckFailed(
            f"the request held {held} pages; abort() freed {serving.cache.num_free_pages - free} of them. Release its "
            "sequences at once: nobody else may come by for a long time."
        )
    if serving.abort(victim):
        raise CheckFailed("a second abort() of the same request returned True.")


@check(SchedulerSubject)
def check_scheduler_returns_who_ended(subject: SchedulerSubject, effort: Effort) -> None:
    """`update` returns each request once, in the step with which it ended; nobody who goes on, nobody aborted.

    Why: the engine answers whoever is returned; who is not returned waits for ever, who is returned twice is answered
    twice, who is returned early is cut short.
    Fix: return the requests of the plan whose `completion` is set after `apply`, and forget them then.
    """
    for setting in _PATTERNS:
        serving = Serving(subject.factory, subject.kv_cache, setting, num_pages=14, budget=40, max_num_reqs=3)
        added = {serving.add(ask(5, first=number, max_tokens=2 + 3 * number)) for number in range(5)}
        ended, aborted = list[int](), -1
        for _ in range(serving.bound()):
            if not serving.live:
                break
            plan = serving.schedule()
            output = serving.execute(plan)
            if serving.steps == 2:
                aborted = plan.windows[-1].request_id
                serving.abort(aborted)
            ended += serving.update(plan, output)
        if sorted(ended) != sorted(added - {aborted}):
            raise CheckFailed(f"of {sorted(added)} request {aborted} was aborted, and {sorted(ended)} were returned.")
        if serving.scheduler.has_work():
            raise CheckFailed("all requests were returned or aborted, and has_work() is True.")
        if serving.scheduler.schedule() is not None:
            raise CheckFailed("all requests were returned or aborted, and schedule() returned a plan.")


@check(SchedulerSubject)
def check_scheduler_names_who_ended(subject: SchedulerSubject, effort: Effort) -> None:
    """The next plan's `ended` names the requests that ended since the last one: each once, and nobody who is live.

    Why: runners keep hidden rows and beliefs for requests until a plan names them. Who is named too early decodes with
    another's row, who is never named leaks device memory.
    Fix: collect the ids of requests where they end, aborted ones included, put them into the next plan and start anew.
    A request that is preempted has not ended.
    """
    serving = Serving(subject.factory, subject.kv_cache, Setting(shifted=True), num_pages=7, budget=60, max_num_reqs=3)
    gone, fed, named = list[int](), set[int](), list[int]()
    for number in range(5):
        serving.add(ask(6, first=number, max_tokens=3 + 3 * number))
    for _ in range(serving.bound()):
        if not serving.live:
            break
        if serving.steps == 3:
            for number in (min(serving.live), max(serving.live)):
                serving.abort(number)
                gone.append(number)
        plan = serving.schedule()
        if not set(gone) & fed <= set(plan.ended) <= set(gone):
            raise CheckFailed(
                f"requests {sorted(gone)} ended since the last plan; `ended` of step {plan.step} names {plan.ended}."
            )
        named += plan.ended
        fed |= {window.request_id for window in plan.windows}
        gone = serving.update(plan, serving.execute(plan))
        for number in gone:
            serving.is_right(number)
    if len(set(named)) != len(named):
        raise CheckFailed(f"plans named {named} as ended; each is named once.")
    # An engine that has nothing to do may ask all the same; who ended last is not forgotten over that.
    if serving.scheduler.schedule() is not None:
        raise CheckFailed("schedule() plans a step although nobody waits or runs; then it returns None.")
    serving.add(ask(6, max_tokens=3))
    if not set(gone) <= set((plan := serving.schedule()).ended):
        raise CheckFailed(
            f"requests {sorted(gone)} ended before schedule() returned None; the next plan names {plan.ended}."
        )


@check(SchedulerSubject)
def check_scheduler_lets_broken_requests_end_alone(subject: SchedulerSubject, effort: Effort) -> None:
    """A request whose logits are not finite ends with ERROR; others go on, and nothing that it computed is shared.

    Why: one damaged request must not take a server down, and pages with NaN that somebody else finds in the cache
    break his answer, too.
    Fix: where `decision.finite` is False call `request.finish(CompletionReason.ERROR)` instead of `apply`, do not
    commit its step, release its pages and return it.
    """
    for step in (0, 1, 4):
        serving = Serving(subject.factory, subject.kv_cache, Setting(), num_pages=40, budget=60)
        prompt = ask(8, max_tokens=14)
        broken, fine = serving.add(prompt), serving.add(ask(8, first=5, max_tokens=14))
        request = serving.live[broken].request
        for _ in range(step):
            serving.step()
        if broken not in serving.live:
            continue
        serving.network.broken.add(broken)
        for _ in range(serving.bound()):
            if broken in serving.live:
                serving.step()
        if request.completion is not CompletionReason.ERROR:
            raise CheckFailed(
                f"a request whose decision was not finite has completion {request.completion}, not ERROR."
            )
        serving.add(prompt)
        serving.drain()
        serving.is_right(fine)
        serving.all_free("after a request with broken logits")


CHECKS: tuple[AnyCheck, ...] = (
    check_scheduler_gives_pages_back,
    check_scheduler_aborts_at_once,
    check_scheduler_returns_who_ended,
    check_scheduler_names_who_ended,
    check_scheduler_lets_broken_requests_end_alone,
)
