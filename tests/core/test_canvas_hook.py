"""A tokens hook may rewrite a canvas between steps: what it takes back is open again, wrong ids are refused."""

from __future__ import annotations

import numpy as np
import pytest

from diffulex_core.canvas.options import CanvasOptions
from diffulex_core.canvas.pattern import full_canvas
from diffulex_core.canvas.request import CanvasRequest, TokensHook
from diffulex_core.canvas.rule import Region
from diffulex_core.pattern import IntArray
from diffulex_core.req_context import ReqContext
from diffulex_core.sampling_params import DecodingThresholds, SamplingParams
from diffulex_core.types import BoolArray, CompletionReason, Decision, FloatArray

EOS, MASK, VOCAB, PROMPT, LENGTH = 7, 99, 120, 3, 4
CONTEXT = ReqContext(
    pattern=full_canvas(4),
    buffer_size=1,
    mask_token_id=MASK,
    eos_token_ids=frozenset({EOS}),
    max_model_len=64,
    thresholds=DecodingThresholds(),
    vocab_size=VOCAB,
)


class FromTheLeft:
    """Decides the first mask in every step."""

    measure, clean = "prob", False

    def ask(self, open: IntArray) -> IntArray:
        return open[:1]

    def choose(self, open: IntArray, asked: IntArray, tokens: IntArray, confidence: FloatArray) -> BoolArray:
        return np.ones(len(asked), dtype=np.bool_)

    def region(self, open: IntArray) -> Region:
        return Region(start=0, end=LENGTH, last=len(open) == 1)

    def left(self, open: IntArray) -> int | None:
        return len(open)


def canvas(hook: TokensHook) -> CanvasRequest:
    return CanvasRequest(
        request_id=0,
        prompt=np.array([EOS, 11, 12]),
        params=SamplingParams(temperature=0.0),
        context=CONTEXT,
        options=CanvasOptions(gen_length=LENGTH),
        length=LENGTH,
        rule=FromTheLeft(),
        tokens_hook=hook,
    )


def step(request: CanvasRequest, token: int) -> list[int]:
    """Decide `token` where the request asks for one; returns the positions asked."""
    span = request.plan(0, None)
    assert span is not None
    asked = [position for group in span.groups for position in group.positions.tolist()]
    request.apply(
        span,
        Decision(
            positions=np.array(asked, dtype=np.int64),
            tokens=np.full(len(asked), token),
            confidence=np.ones(len(asked), dtype=np.float32),
            accepted=np.zeros(len(asked), dtype=np.bool_),
        ),
    )
    return asked


def test_a_decided_position_that_a_hook_masks_is_open_again_and_so_is_the_answer_behind_it() -> None:
    def mask_the_first(step: int | None, tokens: IntArray) -> IntArray:
        if step == 1:
            tokens[PROMPT] = MASK
        return tokens

    request = canvas(mask_the_first)
    assert step(request, 20) == [PROMPT]
    assert request.output_tokens.tolist() == [20]
    assert step(request, 21) == [PROMPT + 1]
    assert request.output_tokens.tolist() == []
    assert step(request, 22) == [PROMPT]
    assert request.output_tokens.tolist() == [22, 21]


def test_an_end_token_that_a_hook_replaces_ends_nothing() -> None:
    def go_on(step: int | None, tokens: IntArray) -> IntArray:
        tokens[PROMPT:][tokens[PROMPT:] == EOS] = 30
        return tokens

    request = canvas(go_on)
    for token in (EOS, 21, EOS):
        step(request, token)
        assert request.completion is None
    step(request, 23)
    assert request.completion is CompletionReason.LENGTH_TOKENS
    assert request.output_tokens.tolist() == [30, 21, 30, 23]


def test_an_end_token_that_a_hook_takes_back_ends_nothing_later() -> None:
    def take_back(step: int | None, tokens: IntArray) -> IntArray:
        if step is None:
            tokens[PROMPT + 2] = EOS
        if step == 0:
            tokens[PROMPT + 2] = 40
        return tokens

    request = canvas(take_back)
    for token in (20, 21, 22):
        step(request, token)
    assert request.completion is CompletionReason.LENGTH_TOKENS
    assert request.output_tokens.tolist() == [20, 21, 40, 22]


@pytest.mark.parametrize("token", [-1, VOCAB, 10**6])
def test_ids_that_do_not_exist_are_refused_before_a_network_reads_them(token: int) -> None:
    def write(step: int | None, tokens: IntArray) -> IntArray:
        tokens[-1] = token
        return tokens

    with pytest.raises(ValueError, match=f"the tokens hook wrote id {token}, outside the vocabulary"):
        canvas(write)


def test_a_sequence_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="the tokens hook made"):
        canvas(lambda step, tokens: tokens[:-1])
