"""Canvases that are planned and denoised together go on as each of them does alone."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from diffulex_core.plugin import Decision, ReqContext, SamplingParams, Span, Spans
from diffulex_core.sampling_params import DecodingThresholds
from diffulex_gemma.decision import CanvasDecision
from diffulex_gemma.options import DenoisingOptions
from diffulex_gemma.pattern import causal_canvas
from diffulex_gemma.request import CanvasRequest

CANVAS, EOS, VOCAB = 4, 29, 30

OPTIONS = st.builds(
    DenoisingOptions,
    diffusion_gemma_max_denoising_steps=st.integers(1, 4),
    diffusion_gemma_stability_threshold=st.integers(0, 2),
    diffusion_gemma_confidence_threshold=st.sampled_from([0.0, 0.4, 5.0]),
    diffusion_gemma_entropy_bound=st.sampled_from([0.0, 0.5, 2.0]),
    diffusion_gemma_shorten_last_canvas=st.booleans(),
)


def request_of(number: int, length: int, options: DenoisingOptions) -> CanvasRequest:
    return CanvasRequest(
        request_id=number,
        prompt=np.arange(length),
        params=SamplingParams(max_tokens=9 + number, seed=5 + number, max_nfe=7 if number == 2 else None),
        context=ReqContext(
            pattern=causal_canvas(CANVAS),
            buffer_size=1,
            mask_token_id=None,
            eos_token_ids=frozenset({EOS}),
            max_model_len=64,
            thresholds=DecodingThresholds(),
            vocab_size=VOCAB,
            options=options,
        ),
    )


def decision_for(span: Span, seed: int) -> Decision:
    """What a network that often says the same might say."""
    luck = np.random.default_rng(seed)
    positions = span.groups.positions
    count = len(positions)
    return CanvasDecision(
        positions=positions,
        tokens=np.where(luck.random(count) < 0.2, luck.integers(VOCAB, size=count), positions % 7),
        confidence=np.full(count, 0.5, dtype=np.float32),
        accepted=np.zeros(count, dtype=np.bool_),
        drawn=luck.integers(VOCAB, size=count),
        entropy=luck.choice([0.0, 0.25, 0.5, 1.5], size=count),
    )


def facts(span: Span) -> tuple[Any, ...]:
    """All that a span says."""
    groups = [
        (each.block, each.positions.tolist(), each.rows.tolist(), each.temperature, each.accept_threshold)
        for each in span.groups
    ]
    told = (getattr(span, each.name) for each in attrs.fields(Span) if each.name not in ("tokens", "groups"))
    return span.tokens.tolist(), groups, *told


def state(request: CanvasRequest) -> tuple[Any, ...]:
    """All that a request shows, and what its next step reads."""
    shown = request.canvas
    return (
        *(shown.tokens.tolist(), shown.decided.tolist(), shown.committed, shown.running_blocks),
        *(request.nfe, request.draws, request.step, request.completion, request.draft.tolist()),
        *(request.stored_tokens.tolist(), request.output_tokens.tolist()),
    )


@settings(max_examples=60, deadline=None)
@given(
    options=OPTIONS,
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    cut=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_together_canvases_become_what_each_becomes_alone(
    options: DenoisingOptions, lengths: list[int], cut: bool, seed: int
) -> None:
    alone = [request_of(number, length, options) for number, length in enumerate(lengths)]
    together = [request_of(number, length, options) for number, length in enumerate(lengths)]
    kind, stored = together[0].kind, [0] * len(lengths)
    for step in range(12):
        running = [at for at, request in enumerate(alone) if request.completion is None]
        if not running:
            return
        spans = dict[int, Span]()
        for at in running:
            # A prompt that does not fit is cut.
            chunk = CANVAS if cut and alone[at].chunkable(stored[at]) else None
            span = alone[at].plan(stored[at], chunk)
            assert span is not None
            spans[at] = span
        outlines = {at: found for at in running if (found := together[at].outline(stored[at])) is not None}
        assert outlines.keys() == {at for at in running if not together[at].chunkable(stored[at])}
        if outlines:
            planned = kind.plan([together[at] for at in outlines], list(outlines.values()))
            assert [facts(span) for span in planned] == [facts(spans[at]) for at in outlines]
        decisions = [decision_for(spans[at], seed + 100 * step + at) for at in running]
        copies = [attrs.evolve(decision, accepted=decision.accepted.copy()) for decision in decisions]
        kind.apply([together[at] for at in running], Spans.of([spans[at] for at in running]), copies)
        for at, decision, copy in zip(running, decisions, copies, strict=True):
            alone[at].apply(spans[at], decision)
            assert decision.accepted.tolist() == copy.accepted.tolist()
            assert state(together[at]) == state(alone[at])
            stored[at] = spans[at].store_until


def test_answers_to_other_questions_are_refused_and_nobody_changes() -> None:
    requests = [request_of(number, 3, DenoisingOptions()) for number in range(2)]
    spans = [request.plan(0, None) for request in requests]
    assert spans[0] is not None
    assert spans[1] is not None
    before = [state(request) for request in requests]
    decisions = [decision_for(span, 1) for span in spans if span is not None]
    wrong = attrs.evolve(decisions[1], positions=decisions[1].positions + 1)
    with pytest.raises(ValueError, match=r"\[1\]"):
        requests[0].kind.apply(requests, Spans.of([spans[0], spans[1]]), [decisions[0], wrong])
    assert [state(request) for request in requests] == before


def test_kinds_are_equal_where_schedules_are() -> None:
    one, same = request_of(0, 3, DenoisingOptions()), request_of(1, 5, DenoisingOptions())
    other = request_of(0, 3, DenoisingOptions(diffusion_gemma_t_max=0.9))
    assert one.kind == same.kind
    assert one.kind != other.kind
