"""Canvases of many requests under one scheduler: whatever comes and goes, budgets hold, pages return, answers are the
same as alone."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress

import attrs
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from diffulex_core.canvas.options import CanvasOptions
from diffulex_core.canvas.pattern import full_canvas
from diffulex_core.canvas.request import CanvasRequest
from diffulex_core.canvas.rule import Region
from diffulex_core.errors import OutOfPages
from diffulex_core.kv_cache import PagedKVCache
from diffulex_core.packing import PackedStep, pack
from diffulex_core.pattern import IntArray
from diffulex_core.protocols import GuidedReq
from diffulex_core.req_context import ReqContext
from diffulex_core.sampling_params import DecodingThresholds, SamplingParams
from diffulex_core.scheduler import ContinuousScheduler
from diffulex_core.sparse import SparseConfig
from diffulex_core.types import BoolArray, Decision, FloatArray, StepOutput, StepPlan, Window

MASK, ROWS, PAGE, PAGES = 99, 80, 4, 24
SLOTS = 400
"""More than any pool here has."""
PATTERN = full_canvas(4)
CONTEXT = ReqContext(
    pattern=PATTERN,
    buffer_size=1,
    mask_token_id=MASK,
    eos_token_ids=frozenset({7}),
    max_model_len=128,
    thresholds=DecodingThresholds(),
)


@attrs.define
class Halves:
    """Decides the first half of the masks of a block in every step, or one of them."""

    block: int
    length: int
    foresees: bool = False
    slow: bool = False
    measure: str = "prob"
    clean: bool = False

    def region(self, open: IntArray) -> Region:
        start = int(open[0]) // self.block * self.block
        end = min(start + self.block, self.length)
        return Region(start=start, end=end, last=self.foresees and int((open < end).sum()) == 1)

    def ask(self, open: IntArray) -> IntArray:
        return open[open < self.region(open).end]

    def choose(self, open: IntArray, asked: IntArray, tokens: IntArray, confidence: FloatArray) -> BoolArray:
        return np.arange(len(asked)) < (1 if self.slow else (len(asked) + 1) // 2)

    def left(self, open: IntArray) -> None:
        return None


@attrs.frozen(kw_only=True)
class Asked:
    """A request."""

    prompt: int
    length: int
    scale: float = 0.0
    ignore_eos: bool = True
    block: int = 99
    foresees: bool = False
    sparse: SparseConfig | None = None
    shifted: bool = False
    slow: bool = False

    @property
    def pages(self) -> int:
        """Those of a full pass."""
        return -(-(self.prompt + self.length) // PAGE) * (2 if self.scale else 1)

    def make(self, number: int) -> CanvasRequest:
        return CanvasRequest(
            request_id=number,
            prompt=np.arange(self.prompt) % 6 + 10 * number,
            params=SamplingParams(temperature=0.0, ignore_eos=self.ignore_eos, sparse=self.sparse),
            context=attrs.evolve(CONTEXT, shifted=self.shifted),
            options=CanvasOptions(gen_length=self.length, cfg_scale=self.scale),
            length=self.length,
            rule=Halves(block=self.block, length=self.length, foresees=self.foresees, slow=self.slow),
        )


@attrs.define
class Reader:
    """Reads what each row would see through the pages, and decides by it.

    A slot holds the token and the position of what was stored last. What a refresh keeps depends on all tokens.
    """

    cap: int | None = None
    kinds: Counter[str] = attrs.field(factory=Counter)
    _memory: IntArray = attrs.field(factory=lambda: np.full(SLOTS, -1))
    _kept: dict[tuple[int, bool], list[int]] = attrs.field(factory=dict)

    def execute(self, plan: StepPlan) -> StepOutput:
        full = [window.span.rows for window in plan.windows if window.span.full_pass]
        assert self.cap is None or len(full) <= 1 or sum(full) <= self.cap
        step = pack(plan, PATTERN, [None], PAGE)
        slots = step.layout.slots[: plan.rows]
        stored = slots >= 0
        assert len(np.unique(slots[stored])) == stored.sum(), "two rows share a slot"
        content = step.input_ids[: plan.rows] * 1000 + step.layout.positions[: plan.rows]
        self._memory[slots[stored]] = content[stored]
        decisions, sampled, row = [], 0, 0
        second = dict(zip(step.guided.at.tolist(), step.guided.rows.tolist(), strict=True))
        for window in plan.windows:
            seen = self._sees(window, step, row, blind=False)
            if window.span.guidance is not None:
                seen += self._sees(window, step, row + len(window.span.tokens), blind=True)
            row += window.span.rows
            tokens = []
            for group in window.span.groups:
                for position in group.positions.tolist():
                    head = step.head_rows[sampled]
                    assert step.layout.positions[head] == position - self._shift(window)
                    if window.span.guidance is not None:
                        assert step.layout.positions[second[sampled]] == step.layout.positions[head]
                    tokens.append(hash((position, *seen)) % 9)
                    sampled += 1
            decisions.append(_decision(window, tokens))
        for each in step.refreshes:
            rows = np.delete(content[each.start : each.end], np.s_[each.refresh.start : each.refresh.end])
            self._memory[each.slots] = _favourites(rows, each.refresh.keep)
        return StepOutput(decisions=tuple(decisions), head_rows=sampled)

    def _sees(self, window: Window, step: PackedStep, row: int, *, blind: bool) -> list[int]:
        """What all rows of a sequence see, which must be what was stored for this very request."""
        span, key = window.span, (window.request_id, blind)
        [visibility] = step.layout.visibility
        ends = visibility.key_end[row : row + len(span.tokens)]
        assert (ends == ends[0]).all()
        at = np.arange(ends[0])
        pages = step.layout.page_tables[step.layout.row_sequence[row]]
        seen: list[int] = self._memory[pages[at // PAGE] * PAGE + at % PAGE].tolist()
        tokens = span.tokens if span.guidance is None or not blind else span.guidance.tokens
        fresh = tokens * 1000 + np.arange(span.start, span.end)
        if blind:
            hidden = max(0, window.prompt_len - span.start)
            assert (tokens[:hidden] == MASK).all()
            assert (tokens[hidden:] == span.tokens[hidden:]).all()
        if span.packed is None:
            assert seen == fresh.tolist()
            self.kinds["full" if span.refresh is None else "refresh" if span.advances else "replay"] += not blind
        else:
            assert seen == self._kept[key] + fresh[span.first_stored - span.start :].tolist()
            self.kinds["reuse"] += not blind
        if span.refresh is not None:
            outside = np.delete(fresh, np.s_[span.refresh.start : span.refresh.end])
            self._kept[key] = _favourites(outside, span.refresh.keep).tolist()
        return seen

    def _shift(self, window: Window) -> int:
        [group] = window.span.groups
        return int(group.positions[0] - group.rows[0]) - window.span.start


def _favourites(content: IntArray, keep: int) -> IntArray:
    order = np.argsort([hash((int(each), int(content.sum()))) for each in content], kind="stable")
    return content[np.sort(order[:keep])]


def _decision(window: Window, tokens: list[int]) -> Decision:
    positions = [group.positions for group in window.span.groups]
    return Decision(
        positions=np.concatenate(positions) if positions else np.empty(0, dtype=np.int64),
        tokens=np.array(tokens, dtype=np.int64),
        confidence=np.ones(len(tokens), dtype=np.float32),
        accepted=np.zeros(len(tokens), dtype=np.bool_),
    )


@attrs.define
class Service:
    """A scheduler over few pages, watched in every step."""

    pages: int = PAGES
    rows: int = ROWS
    at_once: int = 4
    cap: int | None = None
    steps: int = 0
    waits: int = 0
    """Steps in a row without the oldest request."""
    reader: Reader = attrs.field(init=False)
    cache: PagedKVCache = attrs.field(init=False)
    scheduler: ContinuousScheduler = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.reader = Reader(cap=self.cap)
        self.cache = PagedKVCache(num_pages=self.pages, page_size=PAGE, pattern=PATTERN, prefix_caching=False)
        self.scheduler = ContinuousScheduler(
            self.cache,
            max_num_reqs=self.at_once,
            max_num_batched_tokens=self.rows,
            block_size=4,
            max_refresh_tokens=self.cap,
        )

    def run(self, requests: list[CanvasRequest], aborts: dict[int, int] | None = None) -> dict[int, list[int]]:
        """Every request's answer; `aborts` names requests and the step before which they are taken out."""
        answers: dict[int, list[int]] = {}
        for each in requests:
            self.scheduler.add(each)
        alive = {each.request_id for each in requests}
        bound = 60 + 30 * sum(len(each.stored_tokens) for each in requests)
        while alive:
            for number, when in (aborts or {}).items():
                if when == self.steps and self.scheduler.abort(number):
                    alive.remove(number)
            held = self._held(alive)
            plan = self.scheduler.schedule()
            if plan is None:
                break
            waiting = alive - {window.request_id for window in plan.windows}
            for sequence, pages in self._held(waiting).items():
                assert pages == held.get(sequence), "a request that is left out took pages"
            self.steps += 1
            assert plan.rows <= self.rows
            assert self.steps < bound, "no progress"
            fed = {window.request_id for window in plan.windows}
            self.waits = 0 if min(alive) in fed else self.waits + 1
            assert self.waits <= 10, "the oldest request starves"
            done = self.scheduler.update(plan, self.reader.execute(plan))
            answers |= {each.request_id: each.output_tokens.tolist() for each in done}
            alive -= {each.request_id for each in done}
            self._only_what_is_needed_is_held(plan, alive)
            self.scheduler.check_integrity()
        assert not self.scheduler.has_work()
        assert not alive
        return answers

    def _held(self, numbers: set[int]) -> dict[int, int]:
        """Pages of the sequences of these requests that are open."""
        held = {}
        for sequence in (*numbers, *(~number for number in numbers)):
            with suppress(KeyError):
                held[sequence] = len(self.cache.page_table(sequence))
        return held

    def _only_what_is_needed_is_held(self, plan: StepPlan, alive: set[int]) -> None:
        for window in plan.windows:
            if window.request_id in alive and window.span.held is not None:
                assert len(self.cache.page_table(window.request_id)) == -(-window.span.held // PAGE)


caches = st.builds(
    SparseConfig,
    enabled=st.sampled_from([True, True, True, False]),
    retention_ratio=st.sampled_from([0.05, 0.3, 0.7, 1.0]),
    delay_step=st.sampled_from([0, 0, 1, 3]),
    refresh_every=st.sampled_from([None, None, 1, 2, 3]),
    refresh_drift=st.sampled_from([None, None, 0.3, 1.0]),
    force_first=st.just(False),
)
requests = st.builds(
    Asked,
    prompt=st.integers(1, 22),
    length=st.integers(1, 12),
    scale=st.sampled_from([0.0, 0.0, 1.0]),
    ignore_eos=st.booleans(),
    block=st.sampled_from([2, 3, 5, 99]),
    slow=st.booleans(),
    foresees=st.booleans(),
    sparse=st.one_of(st.none(), caches, caches, caches),
    shifted=st.booleans(),
)


@given(
    asked=st.lists(requests, min_size=1, max_size=7),
    aborts=st.dictionaries(st.integers(0, 6), st.integers(0, 12), max_size=3),
    spare=st.integers(0, 5),
    more_rows=st.sampled_from([0, 4, 11, 200]),
    cap=st.sampled_from([None, None, 1, 30]),
)
@settings(max_examples=120, deadline=None)
def test_answers_are_those_of_a_lone_request_whoever_comes_and_goes(
    asked: list[Asked], aborts: dict[int, int], spare: int, more_rows: int, cap: int | None
) -> None:
    pages = spare + max(each.pages for each in asked)
    rows = more_rows + max(each.make(0).most_rows() for each in asked)
    answers = Service(pages=pages, rows=rows, cap=cap).run(
        [each.make(number) for number, each in enumerate(asked)], aborts
    )
    assert set(range(len(asked))) - set(answers) <= set(aborts)
    for number, answer in answers.items():
        assert Service().run([asked[number].make(number)]) == {number: answer}
        assert MASK not in answer
        assert 7 not in answer or asked[number].ignore_eos


def sparse(**settings: object) -> Asked:
    config = SparseConfig(retention_ratio=0.3, delay_step=1)
    return attrs.evolve(Asked(prompt=8, length=12, block=4, sparse=config), **settings)


def test_more_sparse_requests_run_at_once_than_could_make_a_full_pass_together() -> None:
    """A full pass takes 7 pages of 13, and reading what was kept 3."""
    service = Service(pages=13)
    config = SparseConfig(retention_ratio=0.3, delay_step=0)
    for number in range(5):
        service.scheduler.add(Asked(prompt=20, length=8, block=4, slow=True, sparse=config).make(number))
    most = 0
    while (plan := service.scheduler.schedule()) is not None:
        most = max(most, len(plan.windows))
        service.scheduler.update(plan, service.reader.execute(plan))
    assert most == 3
    assert service.reader.kinds == {"refresh": 10, "reuse": 30}, "equal requests never take each other's pages"


def test_only_the_oldest_takes_pages_from_others_and_equal_requests_wait_for_each_other() -> None:
    """A full pass takes 18 pages of 90, reading what was kept 6, so that many meet at the ends of their blocks."""
    service = Service(pages=90, rows=4000, at_once=20)
    asked = Asked(prompt=56, length=16, block=4, slow=True, sparse=SparseConfig(retention_ratio=0.3))
    answers = service.run([asked.make(number) for number in range(20)])
    assert service.reader.kinds == {"full": 80, "refresh": 80, "reuse": 160}
    assert service.steps < 20 * 16 / 4
    assert answers[7] == Service(at_once=1).run([asked.make(7)])[7]


def test_a_guided_request_gets_pages_for_both_its_sequences_or_for_none() -> None:
    service = Service(pages=9)
    service.scheduler.add(Asked(prompt=4, length=8, scale=1.0).make(0))
    assert service.scheduler.schedule() is not None
    [entry] = service.scheduler._running.values()
    with pytest.raises(OutOfPages, match="4 pages needed"):
        service.scheduler._reserve_all(entry, 5 * PAGE)
    assert [len(service.cache.page_table(sequence)) for sequence in (0, ~0)] == [3, 3]


def test_a_request_that_lost_its_pages_stores_once_more_what_it_had_and_goes_on() -> None:
    """The oldest request needs all pages for its next block, so the younger ones lose what they hold."""
    large, small = sparse(prompt=12, length=16, block=8), sparse(prompt=4, length=8, block=8, slow=True)
    service = Service(pages=7)
    answers = service.run([large.make(0), small.make(1), small.make(2)])
    assert service.reader.kinds["replay"] > 0
    assert answers[1] == Service().run([small.make(1)])[1]
    assert answers[2] == Service().run([small.make(2)])[2]


def test_full_passes_take_turns_under_a_cap() -> None:
    service, together = Service(cap=20), Service()
    for each in (service, together):
        each.run([sparse(prompt=4, length=8, block=8).make(number) for number in range(4)])
    assert service.steps > together.steps


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_nothing_is_held_for_a_block_that_is_known_to_be_over(scale: float) -> None:
    service = Service()
    service.scheduler.add(sparse(foresees=True, scale=scale).make(0))
    held = []
    while (plan := service.scheduler.schedule()) is not None:
        service.scheduler.update(plan, service.reader.execute(plan))
        held.append(service.cache.num_pages - service.cache.num_free_pages)
    # Blocks of four are decided in three steps: full, store, and reuse; 16 tokens are outside, of which 4 are kept.
    assert held == [0, 1 + (scale > 0), 0] * 3


def test_a_canvas_request_says_whether_it_owns_two_sequences() -> None:
    plain, guided = Asked(prompt=3, length=4).make(0), Asked(prompt=3, length=4, scale=0.5).make(1)
    assert isinstance(plain, GuidedReq)
    assert (plain.guided, guided.guided) == (False, True)
    assert (plain.most_rows(), guided.most_rows()) == (7, 14)
    assert plain.plan(0, 6) is None
    assert guided.plan(0, 13) is None
    span = guided.plan(0, 14)
    assert span is not None
    assert span.rows == 14
    assert not guided.chunkable(0)
