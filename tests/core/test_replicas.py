"""Several replicas behind one scheduler and one executor: nobody's answer tells how many there are."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import pytest
from hypothesis import given, settings, strategies as st

from diffulex_core.errors import PromptTooLong, WorkerError
from diffulex_core.protocols import ModelRunner
from diffulex_core.replicas import JoinedPlan, ReplicaExecutor, ReplicaScheduler
from diffulex_core.sizing import Capacity
from diffulex_core.types import CompletionReason, StepOutput, StepPlan
from tests.core.oracles import Ask, Setting, decode_alone
from tests.core.serving import PLAIN, Service, ask, asks, request_of, settings_of_engines


@attrs.define
class Copy:
    """An executor around a runner that needs no loading."""

    runner: ModelRunner
    room: Capacity = attrs.field(factory=lambda: Capacity(page_bytes=1, available=100))
    pages: int = 0
    closed: bool = False
    vocab_size: int = 12

    def capacity(self) -> Capacity:
        return self.room

    def allocate(self, num_pages: int) -> None:
        self.pages = num_pages

    def execute(self, plan: StepPlan) -> StepOutput:
        return self.runner.execute(plan)

    def close(self) -> None:
        self.closed = True


@attrs.frozen
class Calling:
    """A runner whose forward is a function."""

    forward: Callable[[], StepOutput]

    def execute(self, plan: StepPlan) -> StepOutput:
        return self.forward()

    def close(self) -> None:
        """Nothing to free."""


@attrs.frozen
class Farm:
    """Replicas of one setting."""

    services: Sequence[Service]
    scheduler: ReplicaScheduler
    executor: ReplicaExecutor

    @classmethod
    def of(cls, setting: Setting, count: int, **limits: Any) -> Farm:
        services = [Service.of(setting, **limits) for _ in range(count)]
        executor = ReplicaExecutor([Copy(service.runner) for service in services])
        return cls(services, ReplicaScheduler([service.scheduler for service in services]), executor)


def plan_of(*replicas: int) -> JoinedPlan:
    """A plan in which these replicas take part, with nothing in it."""
    return JoinedPlan(step=0, windows=(), parts={replica: StepPlan(step=0, windows=()) for replica in replicas})


NOTHING = StepOutput(decisions=(), head_rows=0)


@settings(max_examples=60)
@given(
    setting=settings_of_engines(),
    wishes=st.lists(asks(), min_size=1, max_size=9),
    count=st.integers(1, 3),
    pages=st.sampled_from([12, 200]),
    at_once=st.integers(1, 4),
    aborts=st.dictionaries(st.integers(1, 12), st.integers(0, 8), max_size=3),
)
def test_every_answer_is_what_one_replica_alone_gives(
    setting: Setting, wishes: list[Ask], count: int, pages: int, at_once: int, aborts: dict[int, int]
) -> None:
    farm = Farm.of(setting, count, num_pages=pages, max_num_reqs=at_once)
    requests = {}
    for number, wish in enumerate(wishes):
        request = request_of(setting, wish, number)
        try:
            farm.scheduler.add(request)
        except PromptTooLong:
            continue
        requests[number] = request
    aborted = set()
    step = 0
    while (plan := farm.scheduler.schedule()) is not None:
        step += 1
        assert step < 2000, "the replicas make no progress"
        assert plan.step == step - 1
        output = farm.executor.execute(plan)
        assert len(output.decisions) == len(plan.windows)
        done = farm.scheduler.update(plan, output)
        assert all(request.completion is not None for request in done)
        farm.scheduler.check_integrity()
        victim = aborts.get(step)
        if victim in requests and farm.scheduler.abort(victim):
            aborted.add(victim)
    assert not farm.scheduler.has_work()
    for number, request in requests.items():
        answer = decode_alone(setting, wishes[number])
        if number in aborted:
            assert request.completion is CompletionReason.ABORTED
            assert tuple(request.output_tokens.tolist()) == answer.tokens[: len(request.output_tokens)]
        else:
            assert request.completion is not None
            assert request.completion.value == answer.reason
            assert tuple(request.output_tokens.tolist()) == answer.tokens
    farm.executor.close()


def test_few_pages_preempt_within_a_replica_and_change_nothing() -> None:
    farm = Farm.of(PLAIN, 2, num_pages=8, prefix_caching=False)
    wishes = [ask(8, seed=seed, max_tokens=12) for seed in range(6)]
    requests = [request_of(PLAIN, wish, number) for number, wish in enumerate(wishes)]
    for request in requests:
        farm.scheduler.add(request)
    fed: dict[int, list[int]] = {}
    while (plan := farm.scheduler.schedule()) is not None:
        for window in plan.windows:
            fed.setdefault(window.request_id, []).append(window.span.start)
        farm.scheduler.update(plan, farm.executor.execute(plan))
    assert any(starts != sorted(starts) for starts in fed.values()), "nobody was preempted"
    assert [tuple(request.output_tokens.tolist()) for request in requests] == [
        decode_alone(PLAIN, wish).tokens for wish in wishes
    ]
    farm.executor.close()


def test_requests_go_where_the_least_is_left_to_do() -> None:
    farm = Farm.of(PLAIN, 2)
    for number, length in enumerate([40, 4, 4, 4]):
        farm.scheduler.add(request_of(PLAIN, ask(length), number))
    assert [service.scheduler.num_waiting for service in farm.services] == [1, 3]
    assert farm.scheduler.abort(0)
    farm.scheduler.add(request_of(PLAIN, ask(4), 4))
    assert [service.scheduler.num_waiting for service in farm.services] == [1, 3]
    farm.scheduler.check_integrity()
    farm.executor.close()


def test_a_request_that_is_refused_or_added_twice_changes_nothing() -> None:
    farm = Farm.of(PLAIN, 2, num_pages=4)
    with pytest.raises(PromptTooLong):
        farm.scheduler.add(request_of(PLAIN, ask(30), 0))
    assert not farm.scheduler.has_work()
    farm.scheduler.add(request_of(PLAIN, ask(2), 1))
    with pytest.raises(KeyError):
        farm.scheduler.add(request_of(PLAIN, ask(2), 1))
    assert not farm.scheduler.abort(0)
    farm.scheduler.check_integrity()
    farm.executor.close()


def test_replicas_run_at_the_same_time() -> None:
    both = threading.Barrier(2)

    def meet() -> StepOutput:
        both.wait(timeout=10)
        return NOTHING

    executor = ReplicaExecutor([Copy(Calling(meet)), Copy(Calling(meet))])
    assert executor.execute(plan_of(0, 1)).decisions == ()
    executor.close()


def test_replicas_run_while_the_engine_does_something_else() -> None:
    all_three, met = threading.Barrier(3), list[int]()

    def meet() -> StepOutput:
        all_three.wait(timeout=10)
        return NOTHING

    executor = ReplicaExecutor([Copy(Calling(meet)), Copy(Calling(meet))])
    executor.at_leisure(lambda: met.append(all_three.wait(timeout=10)))
    assert executor.execute(plan_of(0, 1)).decisions == ()
    assert len(met) == 1
    executor.close()


def test_a_replica_without_work_is_left_alone() -> None:
    def complain() -> StepOutput:
        raise AssertionError("nothing is planned here")

    executor = ReplicaExecutor([Copy(Calling(complain)), Copy(Calling(lambda: NOTHING))])
    assert executor.execute(plan_of(1)).head_rows == 0
    executor.close()


def test_the_error_of_one_replica_is_raised_without_waiting_for_the_others() -> None:
    lost = WorkerError("gone", rank=0, replica=1)
    free = threading.Event()

    def fail() -> StepOutput:
        raise lost

    def wait() -> StepOutput:
        free.wait(timeout=10)
        return NOTHING

    executor = ReplicaExecutor([Copy(Calling(wait)), Copy(Calling(fail))])
    with pytest.raises(WorkerError) as caught:
        executor.execute(plan_of(0, 1))
    assert caught.value is lost
    assert not free.is_set()
    free.set()
    assert executor.execute(plan_of(0)).head_rows == 0
    executor.close()


def test_every_replica_gets_as_many_pages_as_the_tightest_has_room_for() -> None:
    rooms = [Capacity(page_bytes=10, available=500), Capacity(page_bytes=20, available=600)]
    copies = [Copy(Calling(lambda: NOTHING), room) for room in rooms]
    executor = ReplicaExecutor(copies)
    assert executor.capacity() == rooms[1]
    assert executor.vocab_size == 12
    executor.allocate(7)
    assert [copy.pages for copy in copies] == [7, 7]
    executor.close()
    assert all(copy.closed for copy in copies)
