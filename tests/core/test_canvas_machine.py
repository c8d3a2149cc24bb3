"""Canvases of many requests under one scheduler: whatever comes and goes, budgets hold, pages return, answers are the
same as alone."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings, strategies as st

from diffulex_core.canvas.options import CanvasOptions
from diffulex_core.canvas.pattern import full_canvas
from diffulex_core.canvas.request import CanvasRequest
from diffulex_core.kv_cache import PagedKVCache
from diffulex_core.packing import pack
from diffulex_core.pattern import IntArray
from diffulex_core.protocols import GuidedReq, ReqContext
from diffulex_core.sampling_params import DecodingThresholds, SamplingParams
from diffulex_core.scheduler import ContinuousScheduler
from diffulex_core.types import BoolArray, Decision, FloatArray, StepOutput, StepPlan, Window

MASK, BUDGET, PAGE, PAGES = 99, 48, 4, 24
PATTERN = full_canvas(4)
CONTEXT = ReqContext(
    pattern=PATTERN,
    buffer_size=1,
    mask_token_id=MASK,
    eos_token_ids=frozenset({7}),
    max_model_len=64,
    thresholds=DecodingThresholds(),
)


class Halves:
    """Decides the first half of the masks in every step."""

    measure, clean = "prob", False

    def ask(self, open: IntArray) -> IntArray:
        return open

    def region(self, open: IntArray) -> Region:
        return Region(start=0, end=99, last=False)

    def choose(self, open: IntArray, asked: IntArray, tokens: IntArray, confidence: FloatArray) -> BoolArray:
        return np.arange(len(asked)) < (len(asked) + 1) // 2


def request(number: int, prompt: int, length: int, scale: float, *, ignore_eos: bool = True) -> CanvasRequest:
    return CanvasRequest(
        request_id=number,
        prompt=np.arange(prompt) % 6 + 10 * number,
        params=SamplingParams(temperature=0.0, ignore_eos=ignore_eos),
        context=CONTEXT,
        options=CanvasOptions(gen_length=length, cfg_scale=scale),
        length=length,
        rule=Halves(),
    )


class Reader:
    """Reads what each row would see through the pages, and decides by it."""

    def __init__(self) -> None:
        self._memory = np.full(PAGES * PAGE, -1)

    def execute(self, plan: StepPlan) -> StepOutput:
        assert plan.rows <= BUDGET
        step = pack(plan, PATTERN, [None], PAGE)
        stored = step.slots[: plan.rows]
        assert (stored >= 0).all()
        assert len(np.unique(stored)) == plan.rows, "two rows share a slot"
        self._memory[stored] = step.input_ids[: plan.rows]
        [visibility] = step.visibility
        decisions, head, second = (
            [],
            iter(step.head_rows.tolist()),
            dict(zip(step.guided.at, step.guided.rows, strict=True)),
        )
        at = 0
        for window in plan.windows:
            tokens = []
            for group in window.span.groups:
                for position in group.positions.tolist():
                    row = next(head)
                    seen = self._seen(step.page_tables[step.row_sequence[row]], visibility.key_end[row])
                    assert seen == window.span.tokens.tolist()
                    if window.span.guidance is not None:
                        other = self._seen(
                            step.page_tables[step.row_sequence[second[at]]], visibility.key_end[second[at]]
                        )
                        assert other == window.span.guidance.tokens.tolist()
                        assert other[: window.prompt_len] == [MASK] * window.prompt_len
                        assert other[window.prompt_len :] == seen[window.prompt_len :]
                        seen += other
                    tokens.append(hash((position, *seen)) % 9)
                    at += 1
            decisions.append(_decision(window, tokens))
        return StepOutput(decisions=tuple(decisions), head_rows=at)

    def _seen(self, pages: IntArray, end: int) -> list[int]:
        slots = np.arange(end)
        seen: list[int] = self._memory[pages[slots // PAGE] * PAGE + slots % PAGE].tolist()
        return seen


def _decision(window: Window, tokens: list[int]) -> Decision:
    positions = [group.positions for group in window.span.groups]
    return Decision(
        positions=np.concatenate(positions) if positions else np.empty(0, dtype=np.int64),
        tokens=np.array(tokens, dtype=np.int64),
        confidence=np.ones(len(tokens), dtype=np.float32),
        accepted=np.zeros(len(tokens), dtype=np.bool_),
    )


def service() -> ContinuousScheduler:
    cache = PagedKVCache(num_pages=PAGES, page_size=PAGE, pattern=PATTERN, prefix_caching=False)
    return ContinuousScheduler(cache, max_num_reqs=4, max_num_batched_tokens=BUDGET, block_size=4)


def run(requests: list[CanvasRequest], aborts: dict[int, int] | None = None) -> dict[int, list[int]]:
    """Every request's answer; `aborts` names requests and the step before which they are taken out."""
    scheduler, runner, answers = service(), Reader(), {}
    for each in requests:
        scheduler.add(each)
    for step in range(200):
        for number, when in (aborts or {}).items():
            if when == step:
                scheduler.abort(number)
        plan = scheduler.schedule()
        if plan is None:
            break
        for done in scheduler.update(plan, runner.execute(plan)):
            answers[done.request_id] = done.output_tokens.tolist()
        scheduler.check_integrity()
    assert not scheduler.has_work()
    return answers


shapes = st.tuples(st.integers(1, 10), st.integers(1, 12), st.sampled_from([0.0, 0.0, 1.0]), st.booleans())


@given(
    asked=st.lists(shapes, min_size=1, max_size=7),
    aborts=st.dictionaries(st.integers(0, 6), st.integers(0, 12), max_size=3),
)
@settings(max_examples=60, deadline=None)
def test_answers_are_those_of_a_lone_request_whoever_comes_and_goes(
    asked: list[tuple[int, int, float, bool]], aborts: dict[int, int]
) -> None:
    def make(number: int) -> CanvasRequest:
        prompt, length, scale, ignore_eos = asked[number]
        return request(number, prompt, length, scale, ignore_eos=ignore_eos)

    answers = run([make(number) for number in range(len(asked))], aborts)
    assert set(range(len(asked))) - set(answers) <= set(aborts)
    for number, answer in answers.items():
        assert run([make(number)]) == {number: answer}
        assert MASK not in answer
        assert 7 not in answer or asked[number][3]


def test_a_canvas_request_says_whether_it_owns_two_sequences() -> None:
    plain, guided = request(0, 3, 4, 0.0), request(1, 3, 4, 0.5)
    assert isinstance(plain, GuidedReq)
    assert (plain.guided, guided.guided) == (False, True)
    assert (plain.most_rows(), guided.most_rows()) == (7, 14)
    assert plain.plan(0, 6) is None
    assert guided.plan(0, 13) is None
    span = guided.plan(0, 14)
    assert span is not None
    assert span.rows == 14
    assert not guided.chunkable(0)
