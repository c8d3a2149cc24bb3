"""The record that is kept while a request is served."""

from __future__ import annotations

import attrs
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from diffulex_core.blocks import BlockRequest
from diffulex_core.outputs import ReqTrajectory, TokenLogprob
from diffulex_core.pattern import FullPrefix
from diffulex_core.testing.fakes import MASK
from diffulex_core.tracking import Forward, Ticket, Totals
from diffulex_core.types import CompletionReason, Decision, LogProbabilities, StepOutput, StepPlan, Window
from tests.core.oracles import Ask, Setting
from tests.core.serving import PLAIN, Service, ask, asks, request_of, settings_of_engines
from tests.core.traces import accept_first, make_request


def serve(
    service: Service, requests: list[BlockRequest], *, traces: bool = False
) -> tuple[list[ReqTrajectory], Totals]:
    """Run the requests; step `n` begins at second `n` and takes half a second."""
    records: list[ReqTrajectory] = []
    tickets = {each.request_id: Ticket(request=each, arrival=-1.0, deliver=records.append) for each in requests}
    totals = Totals()
    for request in requests:
        service.scheduler.add(request)
    while (plan := service.scheduler.schedule()) is not None:
        canvases = {window.request_id: tickets[window.request_id].request.canvas for window in plan.windows}
        output = service.runner.execute(plan)
        done = service.scheduler.update(plan, output)
        forward = Forward.of(plan, output, began=float(plan.step), ended=plan.step + 0.5)
        for at, window in enumerate(plan.windows):
            tickets[window.request_id].note(forward, at, canvases[window.request_id] if traces else None)
        totals = totals.plus(plan, output, 0.5)
        for finished in done:
            assert finished.completion is not None
            ticket = tickets[finished.request_id]
            tokens = tuple(finished.output_tokens.tolist())
            ticket.deliver(
                ticket.trajectory(
                    req_id=finished.request_id,
                    tokens=tokens,
                    text="",
                    reason=finished.completion,
                    error=None,
                    now=plan.step + 0.5,
                )
            )
    return sorted(records, key=lambda record: record.req_id), totals


@given(settings_of_engines(), st.lists(asks(), min_size=1, max_size=3))
@settings(deadline=None)
def test_a_record_adds_up(setting: Setting, asked: list[Ask]) -> None:
    requests = [request_of(setting, each, number) for number, each in enumerate(asked)]
    service = Service.of(setting, budget=max(24, *(request.most_rows() for request in requests)))
    records, totals = serve(service, requests)
    for record, request in zip(records, requests, strict=True):
        assert record.nfe == request.nfe
        assert record.prompt_tokens == request.prompt_len
        assert record.tokens_written == sum(step.num_generated_tokens for step in record.trajectory)
        assert 0 <= record.tokens_visible <= record.tokens_written
        assert record.tokens_edited == 0
        assert record.tokens_committed == request.canvas.committed
        assert (record.first_commit is None) == (record.tokens_committed == 0)
        assert record.admitted == record.trajectory[0].step_id
        assert record.finished == record.trajectory[-1].step_id + 0.5
        deciding = [step.step_id + 0.5 for step in record.trajectory if step.num_generated_tokens]
        assert (record.first_token, record.last_token) == (deciding[0], deciding[-1])
    steps = [step for record in records for step in record.trajectory]
    assert totals.prefill_rows + totals.decode_rows == sum(step.rows for step in steps)
    assert totals.prefill_rows == sum(step.catch_up_rows for step in steps)
    assert totals.steps == 1 + max(step.step_id for step in steps)
    assert totals.prefill_time + totals.decode_time == pytest.approx(0.5 * totals.steps)


def test_known_rows_are_told_apart_from_decoded_ones() -> None:
    [record], totals = serve(Service.of(PLAIN, budget=8), [request_of(PLAIN, ask(18, max_tokens=4))])
    assert [(step.is_prefill, step.rows, step.catch_up_rows) for step in record.trajectory[:3]] == [
        (True, 8, 8),
        (True, 8, 8),
        (False, 8, 0),
    ]
    assert totals.prefill_rows == 16
    [mixed], _ = serve(Service.of(PLAIN), [request_of(PLAIN, ask(18, max_tokens=4))])
    assert [(step.is_prefill, step.rows, step.catch_up_rows) for step in mixed.trajectory[:1]] == [(False, 24, 16)]


def test_tokens_served_from_the_cache_are_counted() -> None:
    service = Service.of(PLAIN)
    serve(service, [request_of(PLAIN, ask(10), 0)])
    [record], _ = serve(service, [request_of(PLAIN, ask(10), 1)])
    assert record.cached_tokens == 8


def test_a_request_that_lost_its_pages_counts_its_preemptions() -> None:
    service = Service.of(PLAIN, num_pages=9, prefix_caching=False)
    records, _ = serve(service, [request_of(PLAIN, ask(10, first=3 * each, max_tokens=16), each) for each in range(2)])
    assert records[0].preemptions == 0
    assert records[1].preemptions >= 1
    assert all(record.completion_reason is CompletionReason.LENGTH_TOKENS for record in records)


def test_a_preemption_counts_although_all_that_was_lost_is_found_in_the_cache() -> None:
    service = Service.of(PLAIN)
    request = request_of(PLAIN, ask(8, max_tokens=20))
    service.scheduler.add(request)
    ticket, counts = Ticket(request=request, arrival=0.0, deliver=lambda record: None), []
    while (plan := service.scheduler.schedule()) is not None:
        output = service.runner.execute(plan)
        service.scheduler.update(plan, output)
        ticket.note(Forward.of(plan, output, began=0.0, ended=0.0), 0)
        counts.append(ticket.preemptions)
        if len(counts) == 2:
            service.scheduler._preempt(service.scheduler._running[0])
    assert counts == [0, 0, *[1] * (len(counts) - 2)]
    assert len(counts) > 2


def test_traces_show_the_fed_window_and_its_blocks_as_they_stood_before_the_step() -> None:
    [record], _ = serve(Service.of(PLAIN), [request_of(PLAIN, ask(6, max_tokens=10))], traces=True)
    first = record.trajectory[0]
    assert first.running_token_ids == (0, 1, 2, 3, 4, 5, *[MASK] * 6)
    assert [attrs.astuple(block) for block in first.block_trace] == [(1, "active", 2, 0.5), (2, "active", 4, 0.0)]
    for step in record.trajectory:
        for block in step.block_trace:
            assert (block.num_mask_tokens == 0) == (block.status == "to_cache")


def test_a_replayed_prompt_shows_no_block_that_it_did_not_feed_whole() -> None:
    request = make_request(6, pattern=FullPrefix(block_size=4), max_tokens=30)
    ticket = Ticket(request=request, arrival=0.0, deliver=lambda record: None)
    for number, stored in enumerate((0, 0, 4)):
        span = request.plan(stored, None)
        assert span is not None
        window = Window(
            request_id=0,
            span=span,
            prompt_len=6,
            page_table=np.arange(9),
            params=request.params,
            draw=request.draws,
            preemptions=min(number, 1),
        )
        decision = accept_first(span, 1)
        ticket.note(_alone(window, decision, number), 0, request.canvas)
        request.apply(span, decision)
    assert [step.is_prefill for step in ticket.steps] == [False, True, False]
    assert [[block.num_mask_tokens for block in step.block_trace] for step in ticket.steps] == [[2, 4], [], [1, 4]]
    assert ticket.preemptions == 1


def test_log_probabilities_are_those_of_the_tokens_that_positions_took_last() -> None:
    request = make_request(3, buffer_size=1, logprobs=1)
    ticket = Ticket(request=request, arrival=0.0, deliver=lambda record: None)
    span = request.plan(0, None)
    assert span is not None
    window = Window(
        request_id=0, span=span, prompt_len=3, page_table=np.arange(1), params=request.params, draw=request.draws
    )
    for token, chosen in ((5, -1.0), (6, -2.0)):
        decision = attrs.evolve(
            accept_first(span, 9, lambda position, token=token: token),
            logprobs=LogProbabilities(
                chosen=np.array([chosen], dtype=np.float32),
                tokens=np.array([[4]]),
                most=np.array([[-0.5]], dtype=np.float32),
            ),
        )
        ticket.note(_alone(window, decision, 0), 0)

    def told(*tokens: int) -> tuple[TokenLogprob | None, ...] | None:
        record = ticket.trajectory(
            req_id=0, tokens=tokens, text="", reason=CompletionReason.ABORTED, error=None, now=1.0
        )
        return record.logprobs

    assert told(6) == (TokenLogprob(token_id=6, logprob=-2.0, top=((4, -0.5),)),)
    assert told(5, 7) == (None, None)


def _alone(window: Window, decision: Decision, step: int) -> Forward:
    """A step with a single window, from second 0 to second 1."""
    output = StepOutput(decisions=(decision,), head_rows=0)
    return Forward.of(StepPlan(step=step, windows=(window,)), output, began=0.0, ended=1.0)
