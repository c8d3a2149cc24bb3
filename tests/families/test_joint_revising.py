"""Requests that revise tokens, planned and moved on together, go on as each of them does alone."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from diffulex_core.blocks import BlockRequest
from diffulex_core.pattern import BlockCausal
from diffulex_core.protocols import ReqFactory, ReqKind
from diffulex_core.req_context import ReqContext
from diffulex_core.sampling_params import DecodingThresholds, SamplingParams
from diffulex_core.types import Alternatives, Decision, Span, Spans
from diffulex_dmax.options import DMaxOptions
from diffulex_dmax.request import dmax_request
from diffulex_multibd.edit import edit_request
from diffulex_multibd.options import EditOptions

MASK, EOS, VOCAB = 99, 98, 100

EDITS = st.builds(
    EditOptions,
    max_post_edit_steps=st.integers(0, 2),
    penalty_lambda=st.sampled_from([0.0, 1.5]),
    enable_remask=st.booleans(),
)
MERGES = st.builds(
    DMaxOptions,
    token_merge_mode=st.sampled_from(["dmax_topk", "iter_smooth_topk"]),
    token_merge_top_k=st.sampled_from([1, 3]),
    token_merge_weight=st.sampled_from([0.0, 0.5]),
    exact_confidence=st.booleans(),
    confident_commit_threshold=st.sampled_from([0.5, 1.0]),
    max_post_edit_steps=st.integers(0, 2),
)
Pair = tuple[BlockRequest, BlockRequest]


@st.composite
def pairs(draw: st.DrawFn, make: ReqFactory, options: st.SearchStrategy[Any]) -> list[Pair]:
    """Several requests of one engine, each twice."""
    block_size = draw(st.sampled_from([1, 2, 4]))
    context = ReqContext(
        pattern=BlockCausal(block_size=block_size),
        buffer_size=draw(st.sampled_from([1, 2, 3])),
        mask_token_id=MASK,
        eos_token_ids=frozenset({EOS}),
        max_model_len=draw(st.sampled_from([21, 400])),
        thresholds=DecodingThresholds(
            add_block_threshold=draw(st.sampled_from([0.0, 0.5])),
            token_stability_threshold=draw(st.sampled_from([0.0, 0.6])),
            accept_threshold=0.7,
            edit_threshold=0.3,
            remask_threshold=0.4,
        ),
        shifted=draw(st.booleans()),
        vocab_size=VOCAB,
        options=draw(options),
    )

    def request(number: int, length: int) -> BlockRequest:
        stops = () if number % 2 else (number + 3,)
        params = SamplingParams(max_tokens=11, stop_token_ids=stops, max_nfe=9 if number == 2 else None)
        made = make(request_id=number, prompt=np.arange(length) + number, params=params, context=context)
        assert isinstance(made, BlockRequest)
        return made

    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    return [(request(number, length), request(number, length)) for number, length in enumerate(lengths)]


def decision_for(request: BlockRequest, span: Span, seed: int) -> Decision:
    """What a network that often agrees might say."""
    luck = np.random.default_rng(seed)
    at, count = span.groups.positions, len(span.groups.positions)
    tokens = np.where(luck.random(count) < 0.03, EOS, luck.integers(90, size=count))
    agrees = request.blocks.decided[at] & (luck.random(count) < 0.8)
    most = max((group.alternatives for group in span.groups), default=0)
    watched = luck.random(count).astype(np.float32)
    return Decision(
        positions=at,
        tokens=np.where(agrees, request.blocks.tokens[at], tokens),
        confidence=luck.choice([0.2, 0.5, 0.9, 1.0], size=count).astype(np.float32),
        accepted=np.zeros(count, dtype=np.bool_),
        watched=watched,
        alternatives=Alternatives(
            tokens=luck.integers(90, size=(count, most)),
            probabilities=luck.random((count, most)).astype(np.float32),
        ),
    )


def numbers(values: np.typing.NDArray[Any] | None) -> Any:
    return None if values is None else values.tolist()


def facts(span: Span) -> tuple[Any, ...]:
    """All that a span says."""
    groups = [
        tuple(
            numbers(value) if isinstance(value := getattr(group, each.name), np.ndarray) else value
            for each in attrs.fields(type(group))
        )
        for group in span.groups
    ]
    blends = None
    if span.blends is not None and len(span.blends.positions):
        arrays = (span.blends.positions, span.blends.ids, span.blends.weights)
        blends = (*map(numbers, arrays), span.blends.match_norm)
    told = (getattr(span, each.name) for each in attrs.fields(Span) if each.name not in ("tokens", "groups", "blends"))
    return span.tokens.tolist(), groups, blends, *told


def state(request: BlockRequest, end: int) -> tuple[Any, ...]:
    """All that a request knows; blends are told up to `end`."""
    table = request.blocks
    running = range(table.head, table.head + len(table.states))
    blends = request.rule.blends(0, end)
    return (
        *(table.tokens.tolist(), table.decided.tolist(), list(table.masks), list(table.states)),
        *(table.head, table.start, table.end, table.frontier),
        *(request.nfe, request.draws, request.completion, request.output_tokens.tolist()),
        [request.rule.stability(table, block) for block in running],
        None if blends is None else (numbers(blends.positions), numbers(blends.ids), numbers(blends.weights)),
    )


def kind_of(request: BlockRequest) -> ReqKind[Any]:
    assert request.kind is not None
    return request.kind


def some(span: Span | None) -> Span:
    assert span is not None
    return span


@pytest.mark.parametrize(("make", "options"), [(edit_request, EDITS), (dmax_request, MERGES)], ids=["edit", "dmax"])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_together_requests_revise_what_each_does_alone(
    make: ReqFactory, options: st.SearchStrategy[Any], data: st.DataObject
) -> None:
    made, seed = data.draw(pairs(make, options)), data.draw(st.integers(0, 2**32 - 1))
    stored = [0] * len(made)
    for step in range(10):
        running = [at for at, (one, _) in enumerate(made) if one.completion is None]
        if not running:
            return
        spans = {at: some(made[at][0].plan(stored[at], None)) for at in running}
        outlines = {at: outline for at in running if (outline := made[at][1].outline(stored[at])) is not None}
        kind = kind_of(made[running[0]][1])
        assert all(kind_of(made[at][1]) == kind for at in running)
        if outlines:
            planned = kind.plan([made[at][1] for at in outlines], list(outlines.values()))
            assert [facts(span) for span in planned] == [facts(spans[at]) for at in outlines]
        alone = [decision_for(made[at][0], spans[at], seed + 100 * step + at) for at in running]
        together = [attrs.evolve(decision, accepted=decision.accepted.copy()) for decision in alone]
        kind.apply([made[at][1] for at in running], Spans.of([spans[at] for at in running]), together)
        for at, one, other in zip(running, alone, together, strict=True):
            made[at][0].apply(spans[at], one)
            assert one.accepted.tolist() == other.accepted.tolist()
            assert state(made[at][1], spans[at].end) == state(made[at][0], spans[at].end)
            stored[at] = spans[at].store_until


def test_requests_of_other_limits_are_of_another_kind() -> None:
    def kind(accept: float, penalty: float) -> ReqKind[Any]:
        context = ReqContext(
            pattern=BlockCausal(block_size=4),
            buffer_size=2,
            mask_token_id=MASK,
            eos_token_ids=frozenset({EOS}),
            max_model_len=64,
            thresholds=DecodingThresholds(accept_threshold=accept),
            options=EditOptions(penalty_lambda=penalty),
        )
        return kind_of(
            edit_request(request_id=0, prompt=np.arange(5), params=SamplingParams(max_tokens=4), context=context)
        )

    assert kind(0.5, 0.0) == kind(0.5, 0.0)
    assert kind(0.5, 0.0) != kind(0.6, 0.0)
    assert kind(0.5, 0.0) != kind(0.5, 1.0)
