"""What a step costs the host, counted and never timed: calls and bytes for each request, however long its prompt."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType

import attrs
import numpy as np
import pytest

from diffulex_core.blocks import BlockRequest
from diffulex_core.kv_cache import PagedKVCache
from diffulex_core.layout import Layout
from diffulex_core.packing import pack
from diffulex_core.pattern import BlockCausal
from diffulex_core.protocols import ReqFactory
from diffulex_core.req_context import ReqContext
from diffulex_core.sampling_params import DecodingThresholds, SamplingParams
from diffulex_core.scheduler import ContinuousScheduler
from diffulex_core.types import Decision, StepOutput, Window

REQUESTS, BLOCK, BUFFER, PAGE = 16, 8, 4, 8
STEPS = 2 * BLOCK
"""Steps that are counted: every block is begun, filled, stored and left behind."""

MOST_CALLS = 100
"""Calls of functions for each request of a step, those written in C included; 97 when this was written."""
MOST_BYTES = 4_000
"""Bytes that a step holds at a time for each request, page tables left out."""


@attrs.define
class Counted:
    """Sums over the steps that were counted."""

    calls: int = 0
    bytes: int = 0
    rows: int = 0


@contextmanager
def calls_into(counted: Counted) -> Iterator[None]:
    """Count calls of functions, those written in C included."""

    def note(frame: FrameType, event: str, argument: object) -> None:
        counted.calls += event in ("call", "c_call")

    gc.disable()  # whoever watches collections would be counted
    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(None)
        gc.enable()


@contextmanager
def bytes_into(counted: Counted) -> Iterator[None]:
    """Note the most that is held at a time."""
    tracemalloc.start()
    try:
        yield
        counted.bytes = max(counted.bytes, tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()


def one_of_each_group(window: Window) -> Decision:
    """The first position of every block is decided."""
    positions = window.span.groups.positions
    accepted = np.zeros(len(positions), dtype=np.bool_)
    accepted[np.cumsum([0, *window.span.groups.sizes])[:-1]] = len(positions) > 0
    return Decision(
        positions=positions,
        tokens=np.full(len(positions), 5),
        confidence=np.full(len(positions), 0.5, dtype=np.float32),
        accepted=accepted,
    )


Counter = Callable[[Counted], AbstractContextManager[None]]
"""Counts what happens inside."""


def count(prompt: int, into: Counter, make: ReqFactory = BlockRequest, options: object = None) -> Counted:
    """The cost of `STEPS` steps of requests that all have `BUFFER` blocks, but for network and sampler.

    Args:
        prompt: length of every prompt.
        into: what is counted.
        make: of the requests; `options` are those of its strategy.
    """
    pattern = BlockCausal(block_size=BLOCK)
    context = ReqContext(
        pattern=pattern,
        buffer_size=BUFFER,
        mask_token_id=100,
        eos_token_ids=frozenset({99}),
        max_model_len=prompt + 2000,
        thresholds=DecodingThresholds(add_block_threshold=0.0, semi_complete_threshold=0.0),
        options=options,
    )
    pages = REQUESTS * -(-(prompt + 1000) // PAGE)
    cache = PagedKVCache(num_pages=pages, page_size=PAGE, pattern=pattern, prefix_caching=True)
    scheduler = ContinuousScheduler(
        cache, max_num_reqs=REQUESTS, max_num_batched_tokens=REQUESTS * prompt + 1000, block_size=BLOCK
    )
    params = SamplingParams(temperature=0.0, max_tokens=900)
    for request_id in range(REQUESTS):
        tokens = (np.arange(prompt) * 7 + 31 * request_id) % 90
        scheduler.add(make(request_id=request_id, prompt=tokens, params=params, context=context))
    counted = Counted()
    layout: Layout | None = None

    def step(counting: Callable[[], AbstractContextManager[None]]) -> None:
        nonlocal layout
        with counting():
            plan = scheduler.schedule()
        assert plan is not None
        with counting():
            layout = pack(plan, pattern, [None], PAGE, layout).layout
        counted.rows = plan.rows
        output = StepOutput(decisions=tuple(map(one_of_each_group, plan.windows)), head_rows=0)
        with counting():
            scheduler.update(plan, output)

    for _ in range(3 * BLOCK):
        step(nullcontext)
    for _ in range(STEPS):
        step(lambda: into(counted))
    assert counted.rows == REQUESTS * BUFFER * BLOCK
    return counted


@pytest.mark.parametrize("prompt", [64, 1024])
def test_a_request_costs_a_step_few_calls(prompt: int) -> None:
    assert count(prompt, calls_into).calls / (STEPS * REQUESTS) <= MOST_CALLS


def test_calls_do_not_depend_on_the_length_of_prompts() -> None:
    assert count(64, calls_into).calls == count(1024, calls_into).calls


@pytest.mark.parametrize("prompt", [64, 1024])
def test_a_request_costs_a_step_few_bytes(prompt: int) -> None:
    table = 8 * -(-(prompt + BUFFER * BLOCK + STEPS) // PAGE)
    assert count(prompt, bytes_into).bytes / REQUESTS <= MOST_BYTES + 2 * table
