"""Driving one request's block machine by hand: every step accepts the first `a` masks of each eligible block."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import attrs
import numpy as np

from diffulex_core.blocks import BlockRequest, BlockState
from diffulex_core.pattern import AttentionPattern, BlockCausal
from diffulex_core.req_context import AutoNFE, ReqContext
from diffulex_core.sampling_params import DecodingThresholds, SamplingParams
from diffulex_core.types import Decision, Span

MASK = 99
EOS = 98


def make_request(
    prompt_len: int,
    *,
    block_size: int = 4,
    buffer_size: int = 2,
    max_tokens: int = 16,
    pattern: AttentionPattern | None = None,
    thresholds: DecodingThresholds | None = None,
    overrides: Mapping[str, float] | None = None,
    max_model_len: int = 4096,
    auto_nfe: AutoNFE | None = None,
    eos: Collection[int] = (EOS,),
    request_id: int = 0,
    first_token: int = 1,
    shifted: bool = False,
    **params: Any,
) -> BlockRequest:
    """A request over the prompt `first_token`, `first_token + 1`, ... with the default thresholds."""
    return BlockRequest(
        request_id=request_id,
        prompt=np.arange(first_token, first_token + prompt_len),
        params=SamplingParams(max_tokens=max_tokens, thresholds=overrides or {}, **params),
        context=ReqContext(
            pattern=pattern or BlockCausal(block_size=block_size),
            buffer_size=buffer_size,
            mask_token_id=MASK,
            eos_token_ids=frozenset(eos),
            max_model_len=max_model_len,
            thresholds=thresholds or DecodingThresholds(),
            shifted=shifted,
            auto_nfe=auto_nfe,
        ),
    )


def accept_first(span: Span, count: int, token_at: Callable[[int], int] = lambda position: 7) -> Decision:
    """Accept the first `count` masks of every group that may decide one although it is not confident."""
    positions = [group.positions for group in span.groups]
    taken = [np.arange(len(group.positions)) < count * group.force_one for group in span.groups]
    flat = np.concatenate([*positions, np.empty(0, dtype=np.int64)])
    return Decision(
        positions=flat,
        tokens=np.array([token_at(int(position)) for position in flat], dtype=np.int64),
        confidence=np.full(len(flat), 0.5, dtype=np.float32),
        accepted=np.concatenate([*taken, np.empty(0, dtype=np.bool_)]),
    )


@attrs.frozen
class Row:
    """One step of a trace: first position fed, rows fed, buffer states after the step, K/V newly final."""

    start: int
    rows: int
    states: str
    stored: tuple[int, int]


def run(
    request: BlockRequest, count: int, token_at: Callable[[int], int] = lambda position: 7, limit: int = 200
) -> list[Row]:
    """Step the request to its end without a scheduler."""
    stored = 0
    rows: list[Row] = []
    while request.completion is None:
        assert len(rows) < limit, "the request makes no progress"
        span = request.plan(stored, None)
        assert span is not None
        request.apply(span, accept_first(span, count, token_at))
        letters = {BlockState.ACTIVE: "A", BlockState.TO_CACHE: "T"}
        states = "".join(letters[state] for state in request.blocks.states)
        rows.append(Row(span.start, len(span.tokens), states, (stored, span.store_until)))
        stored = span.store_until
    return rows
