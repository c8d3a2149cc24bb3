"""Checks of schedulers: everybody is served, and nobody's answer depends on it."""

from __future__ import annotations

from itertools import pairwise

import attrs
import numpy as np
from hypothesis import strategies as st

from diffulex_core.errors import PromptTooLong
from diffulex_core.testing.check import AnyCheck, CheckFailed, check
from diffulex_core.testing.checks import scheduler_ends, scheduler_sequences
from diffulex_core.testing.effort import Effort
from diffulex_core.testing.fakes.network import WORDS
from diffulex_core.testing.fakes.scripted import ScriptedRunner, one_at_a_time
from diffulex_core.testing.machines.scheduler import scheduler_machine
from diffulex_core.testing.patience import patience
from diffulex_core.testing.plans import fingerprint, travels
from diffulex_core.testing.serving import Serving
from diffulex_core.testing.subjects import SchedulerSubject
from diffulex_core.testing.workload import Ask, Setting, ask, asks, settings
from diffulex_core.types import StepPlan

PATTERNS = (Setting(), Setting(full_prefix=True))
"""One block-causal and one full-prefix setting."""


@check(SchedulerSubject)
def check_scheduler_serves_any_history(subject: SchedulerSubject, effort: Effort) -> None:
    """Whatever history of arrivals, steps and aborts: budgets hold, pages return, answers are those of lone requests.

    Why: a scheduler's faults hide in combinations, as of an abort between a preemption and a cache hit. Here many
    random histories are played while pages, rows and places are short, and everything is watched in every step.
    Fix: the failure lists the shortest history that shows it, rule by rule; play it back with
    `scheduler_machine(YourScheduler)`. Most likely a check with a narrower name fails as well: repair that first.
    """
    effort.run_machine(scheduler_machine(subject.factory, subject.kv_cache), steps=40, share=2)


@check(SchedulerSubject)
def check_scheduler_answers_are_those_of_lone_requests(subject: SchedulerSubject, effort: Effort) -> None:
    """Each request's tokens and reason to end are the ones it gets when nobody else is there.

    Why: a request that is given another's decision, a page that somebody else writes, or final K/V that are computed
    anew from other tokens, changes an answer only in company, and nobody notices.
    Fix: hand `output.decisions[i]` to the request of `plan.windows[i]`, commit `span.store_until` slots and no more,
    and feed what `request.plan(stored, budget)` asks for, where `stored` is what `kv_cache.stored` says.
    """

    @effort.for_all(
        setting=settings(),
        asked=st.lists(asks(), min_size=2, max_size=5),
        spare=st.sampled_from([0, 2, 100]),
        extra_rows=st.sampled_from([0, 3, 200]),
        prefix_caching=st.booleans(),
    )
    def holds(setting: Setting, asked: list[Ask], spare: int, extra_rows: int, *, prefix_caching: bool) -> None:
        requests = [each.make(setting, 0) for each in asked]
        serving = Serving(
            subject.factory,
            subject.kv_cache,
            setting,
            num_pages=spare + max(-(-each.most_slots() // setting.block_size) for each in requests),
            budget=extra_rows + max(each.most_rows() for each in requests),
            max_num_reqs=3,
            prefix_caching=prefix_caching,
        )
        for each in asked:
            serving.add(each)
        serving.drain()


@check(SchedulerSubject)
def check_scheduler_gives_each_request_its_own_decisions(subject: SchedulerSubject, effort: Effort) -> None:
    """A request takes over what was decided for its own window, and nothing else.

    Why: users would read each other's answers.
    Fix: in `update`, `output.decisions[i]` belongs to `plan.windows[i].request_id`; look the request up by that id,
    since others may have ended, come or changed places since the plan was made.
    """
    for setting in PATTERNS:
        for leaves in (False, True):
            runner = ScriptedRunner(one_at_a_time, lambda window, position: window.request_id)
            serving = Serving(subject.factory, subject.kv_cache, setting, budget=24, max_num_reqs=3, runner=runner)
            # One that leaves while a step runs must not shift the decisions of the others, who are at one position.
            requests = {
                serving.add(ask(3 + number * (not leaves), max_tokens=6 + number)): number for number in range(5)
            }
            live = dict(serving.live)
            bound = serving.bound()
            for _ in range(bound):
                if not serving.live:
                    break
                plan = serving.schedule()
                if leaves and len(plan.windows) == 3:
                    leaves = not serving.abort(plan.windows[0].request_id)
                    del requests[plan.windows[0].request_id]
                serving.update(plan, serving.execute(plan))
            for number in requests:
                tokens = live[number].request.output_tokens.tolist()
                if strange := sorted(set(tokens) - {number}):
                    raise CheckFailed(f"request {number} answered {tokens}; {strange} were decided for other requests.")
                if len(tokens) != 6 + number:
                    raise CheckFailed(f"request {number} has {len(tokens)} of {6 + number} tokens after {bound} steps.")


@check(SchedulerSubject)
def check_scheduler_keeps_within_its_budgets(subject: SchedulerSubject, effort: Effort) -> None:
    """No plan has more rows than `max_num_batched_tokens` or more windows than `max_num_reqs`.

    Why: memory for activations and captured graphs is sized by them, so a step above them fails on the device.
    Fix: count `span.rows` of everything that is placed, prefill chunks and second sequences included, and pass what is
    left as the budget of `request.plan`.
    """

    @effort.for_all(
        setting=settings(),
        asked=st.lists(asks(), min_size=3, max_size=6),
        extra_rows=st.sampled_from([0, 1, 5, 20]),
        max_num_reqs=st.integers(1, 3),
    )
    def holds(setting: Setting, asked: list[Ask], extra_rows: int, max_num_reqs: int) -> None:
        rows = extra_rows + max(each.make(setting, 0).most_rows() for each in asked)
        serving = Serving(subject.factory, subject.kv_cache, setting, budget=rows, max_num_reqs=max_num_reqs)
        for each in asked:
            serving.add(each)
        for _ in range(serving.bound()):
            if serving.live:
                plan = serving.schedule()
                serving.within_budgets(plan)
                serving.update(plan, serving.execute(plan))


@check(SchedulerSubject)
def check_scheduler_refuses_what_can_never_fit(subject: SchedulerSubject, effort: Effort) -> None:
    """`add` raises PromptTooLong for a request that needs more pages or rows than there are, and takes one that fits.

    Why: a request that is taken and never fits blocks the queue or ends the engine's loop with an error that takes
    everybody else down; one that is refused although it fits is simply lost.
    Fix: in `add`, compare `request.most_slots()`, in pages of all its sequences, with `kv_cache.num_pages`, and
    `request.most_rows()` with the row budget; refuse before anything changes.
    """
    for setting in PATTERNS:
        for prompt_len in (3, 8, 21):
            large = ask(prompt_len, max_tokens=13)
            request = large.make(setting, 99)
            pages, rows = -(-request.most_slots() // setting.block_size), request.most_rows()
            for num_pages, budget, fits in ((pages, rows, True), (pages - 1, rows, False), (pages, rows - 1, False)):
                serving = Serving(
                    subject.factory, subject.kv_cache, setting, num_pages=num_pages, budget=budget, max_num_reqs=2
                )
                small = ask(1, max_tokens=2)
                serving.add(small)
                if fits:
                    serving.add(large)
                else:
                    _is_refused(serving, large, f"{pages} pages and {rows} rows")
                serving.drain()
                if serving.scheduler.has_work():
                    raise CheckFailed("a request that add() refused is waiting all the same.")
                serving.all_free("after a request that was refused" if not fits else "after a request that just fits")


def _is_refused(serving: Serving, large: Ask, needs: str) -> None:
    request = large.make(serving.setting, 99)
    try:
        with patience("add()"):
            serving.scheduler.add(request)
    except PromptTooLong:
        if request.completion is not None:
            raise CheckFailed("add() refused a request and ended it, too; leave it as it is.") from None
        if serving.scheduler.abort(99):
            raise CheckFailed("add() refused a request, and abort() finds it.") from None
        return
    raise CheckFailed(
        f"add() took a request that needs {needs}; there are {serving.num_pages} pages and {serving.budget} rows in a "
        "step. It can never be served; raise PromptTooLong."
    )


@check(SchedulerSubject)
def check_scheduler_starves_nobody(subject: SchedulerSubject, effort: Effort) -> None:
    """Everybody is served in time, however many others keep coming, be they smaller, larger or alike.

    Why: under load a scheduler that prefers newcomers, or whoever happens to fit, lets some requests wait for ever.
    Fix: serve waiting requests in the order in which they came, without letting others overtake for good one that waits
    for pages, and place running requests that were fed longest ago first.
    """
    small, large, long_prompt = ask(2, max_tokens=3), ask(9, max_tokens=20), ask(26, max_tokens=3, first=5)
    for setting in PATTERNS:
        for first, newcomer in ((large, small), (small, large), (long_prompt, large), (large, long_prompt)):
            requests = [each.make(setting, 0) for each in (first, newcomer)]
            serving = Serving(
                subject.factory,
                subject.kv_cache,
                setting,
                num_pages=max(-(-each.most_slots() // setting.block_size) for each in requests) + 2,
                budget=max(each.most_rows() for each in requests),
                max_num_reqs=2,
                prefix_caching=False,
            )
            _serves_the_early(serving, first, newcomer)


def _serves_the_early(serving: Serving, first: Ask, newcomer: Ask) -> None:
    """The first four are done within a bound while another one comes in every step."""
    early = {serving.add(newcomer)} | {serving.add(first) for _ in range(3)}
    bound = 60 + 5 * sum(serving.live[number].work for number in early)
    while waiting := early & set(serving.live):
        if serving.steps >= bound:
            raise CheckFailed(
                f"requests {sorted(waiting)} were among the first four and are not done after {bound} steps, while "
                f"{len(set(serving.ended) - early)} that came later are. {serving}"
            )
        if len(serving.live) < 12:
            serving.add(newcomer)
        serving.step()


@check(SchedulerSubject)
def check_scheduler_goes_on_when_pages_are_short(subject: SchedulerSubject, effort: Effort) -> None:
    """Requests that fit one by one are all served, also when their pages never suffice for two of them.

    Why: when pages run out, requests that wait for each other's pages stand still for ever, and two that take turns in
    losing theirs run for ever without getting anywhere.
    Fix: let the oldest request always have its pages, at the expense of the youngest; tell who lost them with
    `request.preempted()` and queue it again in its old place.
    """
    for setting in PATTERNS:
        for spare in (0, 1, 3):
            asked = [ask(5 + number, first=number, max_tokens=14) for number in range(4)]
            pages = max(-(-each.make(setting, 0).most_slots() // setting.block_size) for each in asked)
            serving = Serving(
                subject.factory,
                subject.kv_cache,
                setting,
                num_pages=pages + spare,
                budget=40,
                max_num_reqs=4,
                prefix_caching=bool(spare % 2),
            )
            for each in asked:
                serving.add(each)
            serving.drain()
            serving.all_free("after requests that competed for them")


@check(SchedulerSubject)
def check_scheduler_tells_requests_that_lost_their_pages(subject: SchedulerSubject, effort: Effort) -> None:
    """A request whose pages were taken away is told so, once for each time, and its windows count the times.

    Why: some requests keep more than tokens (a place in a state machine, what a full pass stored), which they must
    give up with their pages; and traces tell users how often their request was set back.
    Fix: call `request.preempted()` where its sequences are released although it is not done, and pass the number of
    those calls as `Window.preemptions`.
    """
    for setting in PATTERNS:
        serving = Serving(
            subject.factory, subject.kv_cache, setting, num_pages=9, budget=60, max_num_reqs=4, prefix_caching=False
        )
        for number in range(4):
            serving.add(ask(9, first=number, max_tokens=16))
        for _ in range(serving.bound()):
            if serving.live:
                plan = serving.schedule()
                serving.told_of_losses(plan)
                serving.update(plan, serving.execute(plan))


@check(SchedulerSubject)
def check_scheduler_publishes_only_what_is_final(subject: SchedulerSubject, effort: Effort) -> None:
    """A prompt that repeats another request's prompt and answer is answered as if nothing of it were cached.

    Why: K/V of a block change until the block is stored. Pages that are committed earlier look right, since their
    tokens are, and hold K/V that were computed while neighbours were still masked.
    Fix: call `kv_cache.commit(id, request.known_tokens, span.store_until)` after the step was executed, never when it
    is planned or for rows at or above `store_until`.
    """
    for setting in (Setting(), Setting(buffer_size=1), Setting(shifted=True), Setting(full_prefix=True)):
        for page_size in (4, 8):
            serving = Serving(
                subject.factory, subject.kv_cache, setting, page_size=page_size, num_pages=60, max_num_reqs=3
            )
            for seed in range(2):
                first = ask(9, max_tokens=23, seed=seed)
                number = serving.add(first)
                cut = serving.add(ask(9, max_tokens=40, seed=seed + 5))
                for _ in range(4):
                    serving.step()
                plan = serving.schedule()
                said = serving.live[cut].request.canvas.tokens if cut in serving.live else np.empty(0, dtype=np.int64)
                serving.abort(cut)
                serving.update(plan, serving.execute(plan))
                serving.drain()
                answer = serving.ended[number].request.output_tokens.tolist()
                turns = [(*first.prompt, *answer), (*first.prompt, *said[said < WORDS].tolist())]
                for turn in turns:
                    serving.add(Ask(prompt=turn, max_tokens=8))
                    serving.add(Ask(prompt=turn[: len(turn) // 2 + 4], max_tokens=8))
                serving.drain()
    serving = Serving(subject.factory, subject.kv_cache, Setting(), page_size=4, num_pages=60, max_num_reqs=3)
    private = Ask(prompt=tuple(range(WORDS)), private=True)
    serving.add(private)
    serving.drain()
    serving.add(attrs.evolve(private, private=False))
    if first_fed := min(window.span.start for window in serving.schedule().windows):
        raise CheckFailed(
            f"a request finds {first_fed} stored slots of another one, whose known_tokens were empty all along; commit "
            "`request.known_tokens` and no other tokens."
        )


@check(SchedulerSubject)
def check_scheduler_plans_are_values(subject: SchedulerSubject, effort: Effort) -> None:
    """A plan survives pickling, and nothing that happens later changes it.

    Why: plans are sent to worker processes, recorded, and executed while the scheduler's own state goes on.
    Fix: build `StepPlan` and `Window` anew in each step, with tuples, and with page tables as `kv_cache.page_table`
    returns them, which are copies.
    """
    for setting in PATTERNS:
        serving = Serving(subject.factory, subject.kv_cache, setting, num_pages=9, budget=30, max_num_reqs=3)
        for number in range(4):
            serving.add(ask(6, first=number, max_tokens=14))
        earlier: list[tuple[StepPlan, object]] = []
        for _ in range(serving.bound()):
            if not serving.live:
                break
            plan = serving.schedule()
            travels(plan)
            earlier.append((plan, fingerprint(plan)))
            serving.update(plan, serving.execute(plan))
            for old, before in earlier[-4:]:
                if fingerprint(old) != before:
                    raise CheckFailed(f"the plan of step {old.step} changed afterwards; build a new one in each step.")
        steps = [plan.step for plan, _ in earlier]
        if any(later <= step for step, later in pairwise(steps)):
            raise CheckFailed(f"plans are numbered {steps}; `step` counts them.")


@check(SchedulerSubject)
def check_schedulers_do_not_share_state(subject: SchedulerSubject, effort: Effort) -> None:
    """Two schedulers in one process, taking turns, serve their own requests as each does alone.

    Why: engines live side by side, as replicas and as tests do; state on a class or module makes one of them serve, or
    forget, the other's requests.
    Fix: keep everything in the instance; look for mutable class attributes, default arguments and module globals.
    """
    setting = Setting(shifted=True)
    pair = [
        Serving(subject.factory, subject.kv_cache, setting, num_pages=9, budget=30, max_num_reqs=2) for _ in range(2)
    ]
    for which, serving in enumerate(pair):
        for number in range(3 + which):
            serving.add(ask(5 + 2 * which, first=number + 5 * which, max_tokens=9 + which))
    for _ in range(max(serving.bound() for serving in pair)):
        for serving in pair:
            if serving.live:
                plan = serving.schedule()
                if strange := set(plan.ended) - set(serving.ended):
                    raise CheckFailed(
                        f"a plan names {sorted(strange)} as ended; those are another scheduler's requests."
                    )
                for number in serving.update(plan, serving.execute(plan)):
                    serving.is_right(number)
            elif serving.scheduler.has_work():
                raise CheckFailed("a scheduler whose requests are all done has work; it sees those of another one.")
    for serving in pair:
        if serving.live:
            raise CheckFailed(f"beside another scheduler, requests {sorted(serving.live)} are never done.")
        serving.all_free("in a scheduler beside another one")


CHECKS: tuple[AnyCheck, ...] = (
    check_scheduler_refuses_what_can_never_fit,
    check_scheduler_keeps_within_its_budgets,
    check_scheduler_gives_each_request_its_own_decisions,
    check_scheduler_answers_are_those_of_lone_requests,
    *scheduler_ends.CHECKS,
    check_scheduler_goes_on_when_pages_are_short,
    check_scheduler_starves_nobody,
    check_scheduler_tells_requests_that_lost_their_pages,
    check_scheduler_publishes_only_what_is_final,
    check_scheduler_plans_are_values,
    check_schedulers_do_not_share_state,
    *scheduler_sequences.CHECKS,
    check_scheduler_serves_any_history,
)
