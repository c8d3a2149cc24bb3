"""The scheduler: who is fed, who waits, who gives way, and that a request answers as it does alone."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import attrs
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from diffulex_core.errors import PromptTooLong
from diffulex_core.testing.fakes import EOS, MASK
from diffulex_core.types import CompletionReason, StepPlan, Window
from tests.core.oracles import Ask, Setting, decode_alone
from tests.core.serving import PLAIN, Service, ask, asks, request_of, settings_of_engines


@given(settings_of_engines(), asks(), st.sampled_from([1, 2, 4]))
@settings(deadline=None)
def test_alone_a_request_takes_the_forwards_and_rows_of_the_rules(setting: Setting, ask: Ask, pages: int) -> None:
    answer = decode_alone(setting, ask)
    request = request_of(setting, ask)
    rows = Service.of(setting, page_size=pages * setting.block_size).run([request])
    assert tuple(request.output_tokens.tolist()) == answer.tokens
    assert request.completion is not None
    assert request.completion.value == answer.reason
    assert tuple(rows) == answer.rows
    assert request.nfe == len(answer.rows)


@given(settings_of_engines(), asks(), st.integers(1, 12))
@settings(deadline=None)
def test_a_smaller_max_tokens_gives_a_prefix_of_a_larger_one(setting: Setting, ask: Ask, more: int) -> None:
    asked = [ask, attrs.evolve(ask, max_tokens=ask.max_tokens + more)]
    few, many = (request_of(setting, each, number) for number, each in enumerate(asked))
    Service.of(setting).run([few, many])
    shorter, longer = few.output_tokens.tolist(), many.output_tokens.tolist()
    assert shorter == longer[: len(shorter)]
    if few.completion is CompletionReason.LENGTH_TOKENS:
        assert len(shorter) == ask.max_tokens
    else:
        assert shorter == longer


@given(settings_of_engines(), st.lists(asks(), min_size=2, max_size=4), st.integers(0, 30))
@settings(deadline=None)
def test_nothing_after_a_stop_token_and_no_mask_comes_out(setting: Setting, asked: list[Ask], steps: int) -> None:
    service = Service.of(setting, num_pages=60, budget=40)
    requests = [request_of(setting, each, number) for number, each in enumerate(asked)]
    for request in requests:
        if request.most_rows() <= 40:
            service.scheduler.add(request)
    for _ in range(steps):
        plan = service.scheduler.schedule()
        if plan is None:
            break
        service.scheduler.update(plan, service.runner.execute(plan))
    for request, each in zip(requests, asked, strict=True):
        tokens = request.output_tokens.tolist()
        stops = set(each.stop) | (set() if each.ignore_eos else {EOS})
        assert len(tokens) <= each.max_tokens
        assert not set(tokens) & (stops | {MASK})


def test_a_request_that_can_never_fit_the_cache_is_refused_with_the_number_needed() -> None:
    service = Service.of(PLAIN, num_pages=4)
    with pytest.raises(PromptTooLong, match=r"6 pages.*4 pages of 4"):
        service.scheduler.add(request_of(PLAIN, ask(9, max_tokens=12)))
    assert not service.scheduler.has_work()
    service.run([request_of(PLAIN, ask(4, max_tokens=12))])


@pytest.mark.parametrize(("full_prefix", "needed"), [(False, 8), (True, 24)])
def test_a_request_that_can_never_fit_a_step_is_refused_with_the_number_needed(full_prefix: bool, needed: int) -> None:
    setting = attrs.evolve(PLAIN, full_prefix=full_prefix)
    service = Service.of(setting, budget=needed - 1)
    with pytest.raises(PromptTooLong, match=f"at least {needed}"):
        service.scheduler.add(request_of(setting, ask(20)))
    assert not service.scheduler.has_work()
    Service.of(setting, budget=needed).run([request_of(setting, ask(20))])


def test_a_refused_request_leaves_the_others_alone() -> None:
    service = Service.of(PLAIN, num_pages=5)
    fits, too_long = request_of(PLAIN, ask(4), 0), request_of(PLAIN, ask(20), 1)
    service.scheduler.add(fits)
    with pytest.raises(PromptTooLong):
        service.scheduler.add(too_long)
    service.run([])
    assert len(fits.output_tokens) == 12
    assert too_long.completion is None


def test_a_long_prompt_never_stalls_those_who_decode() -> None:
    service = Service.of(PLAIN, budget=16)
    service.scheduler.add(request_of(PLAIN, ask(4, max_tokens=40), 0))
    _step(service)
    service.scheduler.add(request_of(PLAIN, ask(40, first=5), 1))
    spans = []
    for _ in range(5):
        plan = _step(service)
        windows = {window.request_id: window.span for window in plan.windows}
        assert 0 in windows
        if 1 in windows:
            spans.append((windows[1].start, windows[1].end))
    assert [begin for begin, _ in spans[1:]] == [end for _, end in spans[:-1]]
    assert len(spans) >= 4


def test_prompts_share_what_the_decoding_requests_leave_of_the_budget() -> None:
    service = Service.of(PLAIN, budget=20)
    for number in range(2):
        service.scheduler.add(request_of(PLAIN, ask(40, first=number), number))
    plan = _step(service)
    assert [len(window.span.tokens) for window in plan.windows] == [16, 4]


def test_windows_that_do_not_fit_take_turns() -> None:
    setting = attrs.evolve(PLAIN, buffer_size=1)
    service = Service.of(setting, budget=8)
    for number in range(3):
        service.scheduler.add(request_of(setting, ask(3, first=number, max_tokens=30), number))
    fed = [window.request_id for _ in range(12) for window in _step(service).windows]
    assert all(5 <= fed.count(number) <= 9 for number in range(3))


def test_the_prompt_of_a_full_prefix_pattern_is_fed_in_one_step_or_none() -> None:
    setting = attrs.evolve(PLAIN, full_prefix=True)
    service = Service.of(setting, budget=28)
    service.scheduler.add(request_of(setting, ask(4, max_tokens=30), 0))
    _step(service)
    service.scheduler.add(request_of(setting, ask(24, first=3), 1))
    plans = [_step(service) for _ in range(4)]
    first = next(window.span for plan in plans for window in plan.windows if window.request_id == 1)
    assert (first.start, first.end) == (0, 28)


def test_a_finished_prompt_serves_the_next_request_from_the_cache() -> None:
    service = Service.of(PLAIN)
    [cold] = [service.run([request_of(PLAIN, ask(8), 0)])]
    [warm] = [service.run([request_of(PLAIN, ask(8), 1)])]
    assert (cold[0], warm[0]) == (12, 4), "the cached prompt costs no row, and its first step already decodes"
    assert cold[1:] == warm[1:]


def test_an_answer_serves_the_next_turn_of_the_conversation_from_the_cache() -> None:
    service = Service.of(PLAIN)
    first = request_of(PLAIN, ask(8, max_tokens=20), 0)
    service.run([first])
    turn = (*ask(8).prompt, *first.output_tokens.tolist(), 1, 2, 3)
    rows = service.run([request_of(PLAIN, Ask(prompt=turn, seed=0, max_tokens=4, ignore_eos=True), 1)])
    last_block_of_the_answer = 4
    assert rows[0] <= last_block_of_the_answer + 3 + 5


def test_a_request_with_broken_logits_ends_alone_and_publishes_nothing() -> None:
    service = Service.of(PLAIN)
    service.runner.broken.add(0)
    broken, fine = request_of(PLAIN, ask(8), 0), request_of(PLAIN, ask(8), 1)
    service.run([broken, fine])
    assert broken.completion is CompletionReason.ERROR
    assert tuple(fine.output_tokens.tolist()) == decode_alone(PLAIN, ask(8)).tokens


def test_a_newcomer_waits_until_there_are_pages_for_what_it_has() -> None:
    service = Service.of(PLAIN, num_pages=8, budget=16, prefix_caching=False)
    requests = [request_of(PLAIN, ask(20, first=number, max_tokens=4), number) for number in range(2)]
    rows = service.run(requests)
    assert sum(rows) == sum(sum(decode_alone(PLAIN, ask(20, first=number, max_tokens=4)).rows) for number in range(2))


def test_a_newcomer_that_finds_no_rows_leaves_the_cached_pages_of_others_alone() -> None:
    service = Service.of(PLAIN, num_pages=16, budget=8)
    gone, busy = ask(28, max_tokens=4), ask(3, first=5, max_tokens=20)
    service.run([request_of(PLAIN, gone, 0)])
    service.scheduler.add(request_of(PLAIN, busy, 1))
    _step(service)
    service.scheduler.add(request_of(PLAIN, ask(36, first=3, max_tokens=4), 2))
    plan = _step(service)
    assert [window.request_id for window in plan.windows] == [1]
    assert service.cache.open(99, np.array(gone.prompt, dtype=np.int64), len(gone.prompt)) == 28


def test_abort_gives_the_pages_back_at_once_and_a_second_one_finds_nobody() -> None:
    service = Service.of(PLAIN, num_pages=8)
    request = request_of(PLAIN, ask(8), 0)
    service.scheduler.add(request)
    _step(service)
    assert service.cache.num_free_pages < 8
    assert service.scheduler.abort(0, CompletionReason.STOP_STRING)
    assert service.cache.num_free_pages == 8
    assert not service.scheduler.abort(0)
    assert request.completion is CompletionReason.STOP_STRING
    assert service.scheduler.schedule() is None


def test_a_request_aborted_while_its_step_runs_takes_nothing_from_it() -> None:
    service = Service.of(PLAIN)
    requests = [request_of(PLAIN, ask(8, first=number), number) for number in range(2)]
    for request in requests:
        service.scheduler.add(request)
    plan = service.scheduler.schedule()
    assert plan is not None
    output = service.runner.execute(plan)
    service.scheduler.abort(0)
    assert service.scheduler.update(plan, output) == []
    assert len(requests[0].output_tokens) == 0
    service.run([])
    assert tuple(requests[1].output_tokens.tolist()) == decode_alone(PLAIN, ask(8, first=1)).tokens


@given(settings_of_engines(), asks(), st.lists(st.integers(0, 3), max_size=12), st.integers(0, 12))
@settings(deadline=None)
def test_a_request_that_loses_its_memory_at_any_step_answers_the_same(
    setting: Setting, ask: Ask, fates: list[int], spare: int
) -> None:
    """One request without a scheduler; where a fate is 0 its memory is gone, and it starts from position 0."""
    request = request_of(setting, ask)
    answer = decode_alone(setting, ask)
    service = Service.of(setting)
    table = np.arange(200)[::-1].copy()
    budget = request.most_rows() + spare
    stored = steps = 0
    while request.completion is None:
        assert steps < 200
        if steps < len(fates) and fates[steps] == 0:
            service = Service.of(setting)
            stored = 0
        span = request.plan(stored, budget)
        assert span is not None
        assert len(span.tokens) <= budget
        window = Window(
            request_id=0,
            span=span,
            prompt_len=len(ask.prompt),
            page_table=table,
            params=request.params,
            draw=request.draws,
        )
        [decision] = service.runner.execute(StepPlan(step=steps, windows=(window,))).decisions
        request.apply(span, decision)
        stored = span.store_until
        steps += 1
    assert tuple(request.output_tokens.tolist()) == answer.tokens
    assert request.completion.value == answer.reason


def test_memory_of_a_resumed_request_is_what_it_would_have_been() -> None:
    """Two requests over pages for little more than one: the younger is preempted, again and again."""
    asked = [ask(10, max_tokens=16), ask(10, first=5, max_tokens=16)]
    for full_prefix in (False, True):
        setting = attrs.evolve(PLAIN, full_prefix=full_prefix)
        service = Service.of(setting, num_pages=9)
        requests = [request_of(setting, each, number) for number, each in enumerate(asked)]
        rows = service.run(requests)
        assert [tuple(request.output_tokens.tolist()) for request in requests] == [
            decode_alone(setting, each).tokens for each in asked
        ]
        assert sum(rows) > sum(sum(decode_alone(setting, each).rows) for each in asked), "nobody was preempted"


@pytest.mark.parametrize("full_prefix", [False, True])
@pytest.mark.parametrize("budget", [12, 30, 1000])
def test_a_preempted_request_costs_the_older_one_nothing(full_prefix: bool, budget: int) -> None:
    setting = attrs.evolve(PLAIN, full_prefix=full_prefix)
    service = Service.of(setting, num_pages=7, budget=budget)
    older, younger = (request_of(setting, ask(8, first=3 * number, max_tokens=16), number) for number in range(2))
    service.run([older, younger])
    assert older.nfe <= len(decode_alone(setting, ask(8, max_tokens=16)).rows) + (8 // 4 if budget == 12 else 0)


def test_a_plan_is_a_value_that_can_travel() -> None:
    service = Service.of(PLAIN)
    service.scheduler.add(request_of(PLAIN, ask(6), 0))
    plan = service.scheduler.schedule()
    assert plan is not None
    copy: StepPlan = pickle.loads(pickle.dumps(plan))
    assert copy.rows == plan.rows
    assert copy.windows[0].params == plan.windows[0].params
    np.testing.assert_array_equal(copy.windows[0].page_table, plan.windows[0].page_table)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        plan.step = 3  # type: ignore[misc]


def _twice_waiting(service: Service) -> None:
    waiting = vars(service.scheduler)["_waiting"]
    waiting.append(waiting[0])


def _lost(service: Service) -> None:
    vars(service.scheduler)["_waiting"].clear()


def _waits_and_runs(service: Service) -> None:
    entries = vars(service.scheduler)["_known"]
    vars(service.scheduler)["_waiting"].append((0, entries[0]))


def _leaked(service: Service) -> None:
    service.cache.open(77, np.empty(0, dtype=np.int64), 1)
    service.cache.reserve(77, 4)
    for number in range(2):
        service.scheduler.abort(number)


@pytest.mark.parametrize("damage", [_twice_waiting, _lost, _waits_and_runs, _leaked])
def test_the_integrity_check_finds(damage: Callable[[Service], None]) -> None:
    service = Service.of(PLAIN, max_num_reqs=1)
    for number in range(2):
        service.scheduler.add(request_of(PLAIN, ask(8), number))
    _step(service)
    service.scheduler.check_integrity()
    damage(service)
    with pytest.raises(AssertionError):
        service.scheduler.check_integrity()


def _step(service: Service) -> StepPlan:
    plan = service.scheduler.schedule()
    assert plan is not None
    service.scheduler.update(plan, service.runner.execute(plan))
    return plan


def test_the_runner_is_told_once_of_each_request_that_ended() -> None:
    service = Service.of(PLAIN)
    for number in range(3):
        service.scheduler.add(request_of(PLAIN, ask(8, max_tokens=20), number))
    first = _step(service)
    service.scheduler.abort(1)
    told = [first.ended]
    while service.scheduler.has_work():
        told.append(_step(service).ended)
    assert told[:3] == [(), (1,), ()]
    service.scheduler.add(request_of(PLAIN, ask(4), 3))
    told += [_step(service).ended, _step(service).ended]
    assert sorted(told[-2]) == [0, 2]
    assert told[-1] == ()


def test_a_cached_prompt_lends_a_shifted_request_the_row_that_decides_its_first_position() -> None:
    setting = attrs.evolve(PLAIN, shifted=True)
    service = Service.of(setting)
    cold = service.run([request_of(setting, ask(8), 0)])
    memory = [list(layer) for layer in service.runner.memory]
    request = request_of(setting, ask(8), 1)
    service.scheduler.add(request)
    plan = _step(service)
    [window] = plan.windows
    assert (window.span.start, window.span.store_from, plan.rows) == (7, 8, 5)
    for page in service.cache.page_table(1)[:2].tolist():
        slots = slice(page * service.cache.page_size, (page + 1) * service.cache.page_size)
        for layer, before in zip(service.runner.memory, memory, strict=True):
            assert layer[slots] == before[slots]
    assert service.run([]) == cold[1:]
    assert tuple(request.output_tokens.tolist()) == decode_alone(setting, ask(8)).tokens
