"""Requests that are planned and moved on together go on as each of them does alone."""

from __future__ import annotations

import pickle
from typing import Any

import attrs
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from diffulex_core.blocks import BlockRequest, Fill
from diffulex_core.pattern import BlockCausal, FullPrefix
from diffulex_core.protocols import JointReq
from diffulex_core.req_context import ReqContext
from diffulex_core.sampling_params import DecodingThresholds, SamplingParams
from diffulex_core.spans import CodedTerms
from diffulex_core.testing.plans import fingerprint
from diffulex_core.types import Decision, Span, Spans, StepPlan, Window, Windows

MASK, EOS = 99, 98


def context_of(draw: st.DrawFn) -> ReqContext:
    """Any setting of mask filling."""
    block_size = draw(st.sampled_from([1, 2, 4]))
    return ReqContext(
        pattern=draw(st.sampled_from([BlockCausal, FullPrefix]))(block_size=block_size),
        buffer_size=draw(st.sampled_from([1, 2, 3])),
        mask_token_id=MASK,
        eos_token_ids=frozenset({EOS}),
        max_model_len=draw(st.sampled_from([21, 400])),
        thresholds=DecodingThresholds(
            add_block_threshold=draw(st.sampled_from([0.0, 0.5])),
            semi_complete_threshold=draw(st.sampled_from([0.0, 0.5, 1.0])),
        ),
        force_rule=draw(st.sampled_from(["after_semi_complete", "always"])),
        shifted=draw(st.booleans()),
    )


def decision_for(span: Span, seed: int) -> Decision:
    """Some of the asked positions are accepted, sometimes with a stop token."""
    luck = np.random.default_rng(seed)
    count = len(span.groups.positions)
    return Decision(
        positions=span.groups.positions,
        tokens=np.where(luck.random(count) < 0.05, EOS, luck.integers(90, size=count)),
        confidence=np.full(count, 0.5, dtype=np.float32),
        accepted=luck.random(count) < 0.6,
    )


def facts(span: Span) -> tuple[Any, ...]:
    """All that a span says."""
    groups = [
        (group.block, group.positions.tolist(), group.rows.tolist(), group.force_one, group.accept_threshold)
        for group in span.groups
    ]
    told = (getattr(span, each.name) for each in attrs.fields(Span) if each.name not in ("tokens", "groups"))
    return span.tokens.tolist(), groups, *told


def state(request: BlockRequest) -> tuple[Any, ...]:
    """All that a request knows."""
    table = request.blocks
    return (
        *(table.tokens.tolist(), table.decided.tolist(), list(table.masks), list(table.states)),
        *(table.head, table.start, table.end, table.frontier),
        *(request.nfe, request.draws, request.completion, request._carried, request._stop.first_stop),
    )


@st.composite
def pairs(draw: st.DrawFn) -> list[tuple[BlockRequest, BlockRequest]]:
    """Several requests of one engine, each twice."""
    context = context_of(draw)
    params = SamplingParams(max_tokens=draw(st.sampled_from([5, 11, 30])), max_nfe=draw(st.sampled_from([None, 6])))

    def make(number: int, length: int) -> BlockRequest:
        return BlockRequest(request_id=number, prompt=np.arange(length) + number, params=params, context=context)

    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    return [(make(number, length), make(number, length)) for number, length in enumerate(lengths)]


@settings(max_examples=60, deadline=None)
@given(pairs=pairs(), seed=st.integers(0, 2**32 - 1))
def test_together_requests_feed_and_decide_what_each_does_alone(
    pairs: list[tuple[BlockRequest, BlockRequest]], seed: int
) -> None:
    stored = [0] * len(pairs)
    for step in range(8):
        running = [at for at, (one, _) in enumerate(pairs) if one.completion is None]
        spans = {at: pairs[at][0].plan(stored[at], None) for at in running}
        decisions = {at: decision_for(span, seed + 100 * step + at) for at, span in spans.items() if span is not None}
        together = {at: outline for at in running if (outline := pairs[at][1].outline(stored[at])) is not None}
        if together:
            requests = [pairs[at][1] for at in together]
            kind = requests[0].kind
            assert kind is not None
            planned = kind.plan(requests, list(together.values()))
            assert [facts(span) for span in planned] == [facts(_some(spans[at])) for at in together]
            assert [outline.rows for outline in together.values()] == [span.rows for span in planned]
            assert [outline.slots for outline in together.values()] == [span.slots for span in planned]
        everything = [_some(pairs[at][1].plan(stored[at], None)) for at in running]
        if running:
            kind = pairs[running[0]][1].kind
            assert kind is not None
            answers = [attrs.evolve(decisions[at], accepted=decisions[at].accepted.copy()) for at in running]
            kind.apply([pairs[at][1] for at in running], Spans.of(everything), answers)
        for at in running:
            span = _some(spans[at])
            pairs[at][0].apply(span, decisions[at])
            stored[at] = span.store_until
            assert state(pairs[at][0]) == state(pairs[at][1])


def test_only_what_can_be_cut_or_is_seen_otherwise_is_asked_alone() -> None:
    for pattern in (BlockCausal(block_size=4), FullPrefix(block_size=4)):
        request = _request(pattern=pattern)
        assert request.outline(0) is None
        span = _some(request.plan(0, None))
        request.apply(span, decision_for(span, 0))
        assert request.outline(span.store_until) is not None
        assert request.outline(0) is None


def test_kinds_are_equal_where_rules_are() -> None:
    one, same, other = _request(), _request(), _request(thresholds={"accept_threshold": 0.4})
    assert one.kind == same.kind
    assert one.kind != other.kind
    assert isinstance(one, JointReq)


def test_a_request_of_a_derived_class_or_with_a_rule_of_its_own_goes_alone() -> None:
    class Derived(BlockRequest):
        """May do anything."""

    rule = Fill(thresholds=DecodingThresholds(), force_rule="always")
    assert _request(Derived).kind is None
    assert _request(rule=rule).kind is None


def test_answers_to_other_questions_are_refused_and_nobody_changes() -> None:
    requests = [_request(), _request()]
    spans = Spans.of([_some(request.plan(0, None)) for request in requests])
    answers = [decision_for(span, 1) for span in spans]
    answers[1] = attrs.evolve(answers[1], positions=answers[1].positions + 1)
    before = [state(request) for request in requests]
    kind = requests[0].kind
    assert kind is not None
    with pytest.raises(ValueError, match=r"\[0\]"):
        kind.apply(requests, spans, answers)
    assert [state(request) for request in requests] == before


def test_columns_hold_what_was_given_and_travel() -> None:
    requests = [_request(), _request()]
    made = [
        Window(
            request_id=number,
            span=_some(request.plan(0, None)),
            prompt_len=request.prompt_len,
            page_table=np.arange(3 + number),
            params=request.params,
            draw=number,
        )
        for number, request in enumerate(requests)
    ]
    given_once = Windows.of(made)
    assert list(given_once) == made
    joined = Windows(
        spans=Spans.joined([Spans.of([made[0].span]), Spans.of([made[1].span])]),
        request_ids=[0, 1],
        prompt_lens=given_once.prompt_lens,
        page_tables=given_once.page_tables,
        params=given_once.params,
        draws=[0, 1],
        preemptions=[0, 0],
    )
    plans = [StepPlan(step=0, windows=windows) for windows in (tuple(made), given_once, joined)]
    copies = [pickle.loads(pickle.dumps(plan)) for plan in plans]
    assert len({repr(fingerprint(plan)) for plan in [*plans, *copies]}) == 1
    assert [facts(span) for span in joined.spans] == [facts(window.span) for window in made]
    assert joined.spans.some([1])[0] is joined.spans[1]


def test_coded_terms_are_the_terms() -> None:
    terms = [group for request in (_request(), _request()) for group in _some(request.plan(0, None)).groups]
    terms = [*terms, *terms]
    coded = CodedTerms.of(terms)
    assert list(coded) == terms
    assert list(coded[1:3]) == terms[1:3]
    assert len(coded.kinds) == len(terms) // 2


def _request(
    cls: type[BlockRequest] = BlockRequest,
    *,
    pattern: BlockCausal | FullPrefix | None = None,
    thresholds: dict[str, float] | None = None,
    rule: Fill | None = None,
) -> BlockRequest:
    context = ReqContext(
        pattern=pattern or BlockCausal(block_size=4),
        buffer_size=2,
        mask_token_id=MASK,
        eos_token_ids=frozenset({EOS}),
        max_model_len=100,
        thresholds=DecodingThresholds(),
    )
    params = SamplingParams(max_tokens=20, thresholds=thresholds or {})
    return cls(request_id=0, prompt=np.arange(6), params=params, context=context, rule=rule)


def _some(span: Span | None) -> Span:
    assert span is not None
    return span
