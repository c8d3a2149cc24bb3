"""An engine for a case of the matrix whose every step is checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from diffulex_core.canvas.options import CanvasOptions
from diffulex_core.engine import Diffulex
from diffulex_core.outputs import ReqTrajectory
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.types import CompletionReason, StepPlan
from tests.integration.matrix import PAGE, Case, Checkpoints, host

MOST_STEPS = 1000
"""More than requests of this size take together, so that whoever needs more hangs."""


class Watched:
    """An engine whose every step is checked: budgets, pages, what is kept, what comes out.

    Pages that nobody owns hold NaN whenever a step begins.
    """

    def __init__(self, case: Case, checkpoints: Checkpoints, **settings: Any) -> None:
        strategy, mode = case.recipe
        options: dict[str, Any] = {
            "decoding_strategy": strategy,
            "sampling_mode": mode,
            "block_size": 4,
            "page_size": PAGE,
            "num_pages": 64,
            "max_model_len": 96,
            "max_num_batched_tokens": 256,
            "skip_warmup": True,
            **case.variant.settings,
            **settings,
        }
        self.engine = Diffulex(checkpoints(case.family), host=host(), strict=True, **options)
        self.parts: Any = self.engine._open
        with torch.no_grad():
            self.parts.runner.network.final_norm.weight.mul_(case.variant.sharpness)
        self.kv = self.parts.scheduler._kv
        self._poison(range(self.kv.num_pages))
        self.records: dict[int, ReqTrajectory] = {}
        self.lost = Counter[int]()
        """How often each request lost its pages."""
        self._take_pages, self.parts.scheduler._preempt = self.parts.scheduler._preempt, self._preempted
        self.steps = 0

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *failure: object) -> None:
        self.engine.close()

    def request(self, prompt: Sequence[int], params: SamplingParams) -> Any:
        """The strategy's request, handed to nobody."""
        return self.parts.req(request_id=0, prompt=np.array(prompt), params=params, context=self.parts.req_context)

    def add(self, prompt: Sequence[int], params: SamplingParams) -> int:
        """Queue a request; returns its id."""
        return self.engine.add_request(list(prompt), params, deliver=self._deliver)

    def step(self) -> StepPlan | None:
        """One forward."""
        self._poison([page for page in self.kv._free if page not in self.kv._key_of_page])
        plan = self.engine.step().plan
        self.parts.scheduler.check_integrity()
        if plan is not None:
            self.steps += 1
            self._check(plan)
        return plan

    def finish(self) -> None:
        """Step until nothing is left to do."""
        began = self.steps
        while self.step() is not None:
            assert self.steps - began < MOST_STEPS, "no end in sight"
        assert self.kv.num_free_pages == self.kv.num_pages, "pages leak"

    def check_nothing_is_left(self) -> None:
        """Nothing is kept of requests that ended, but for what the next plan will drop."""
        scheduler, runner = self.parts.scheduler, self.parts.runner._runner
        assert not scheduler.has_work()
        kept = (scheduler._running, scheduler._waiting, scheduler._known, self.kv._sequences, self.engine._tickets)
        assert not any(kept)
        assert {*runner._kept._place, *runner._beliefs._of} <= set(scheduler._ended)
        assert len(self.kv._entry_of_key) <= self.kv.num_pages

    def serve(
        self,
        prompts: Iterable[Sequence[int]],
        params: Iterable[SamplingParams],
        *,
        aborts: Sequence[tuple[int, int]] = (),
    ) -> list[ReqTrajectory]:
        """Answers to prompts that come together; `aborts` pairs steps with a prompt withdrawn after them."""
        ids = [self.add(*each) for each in zip(prompts, params, strict=True)]
        began = self.steps
        for at, number in sorted(aborts):
            while self.steps < began + at and self.step() is not None:
                pass
            assert self.engine.abort_request(ids[number])
            self.parts.scheduler.check_integrity()
        self.finish()
        return [self.records[each] for each in ids]

    def preempt(self, request_id: int) -> bool:
        """Take a running request's pages away, as if they had run out; False when it is not running."""
        entry = self.parts.scheduler._running.get(request_id)
        if entry is None:
            return False
        self.parts.scheduler._preempt(entry)
        return True

    def _preempted(self, entry: Any) -> None:
        self.lost[entry.request.request_id] += 1
        self._take_pages(entry)

    def _poison(self, pages: Iterable[int]) -> None:
        store = self.parts.runner._runner._kv_store
        for tensor in (*store.key_pages, *store.value_pages):
            tensor[list(pages)] = torch.nan

    def _check(self, plan: StepPlan) -> None:
        schedule, page_size = self.engine.config.schedule, self.kv.page_size
        assert 0 < plan.rows <= schedule.max_num_batched_tokens
        assert 0 < len(plan.windows) <= schedule.max_num_reqs
        tables = [table for window in plan.windows for table in (window.page_table, window.second_table)]
        holders = np.bincount(np.concatenate([table for table in tables if table is not None]))
        for window in plan.windows:
            span = window.span
            assert span.slots <= len(window.page_table) * page_size
            first = 0 if span.refresh is not None else span.first_stored if span.packed is None else span.packed
            written = window.page_table[first // page_size : -(-span.slots // page_size)]
            assert (holders[written] == 1).all(), "a page that is written has two holders"
        runner, known = self.parts.runner._runner, self.engine._tickets.keys() | self.engine._ended.keys()
        assert set(runner._kept._place) <= known, "rows of requests that ended are kept"
        assert set(runner._beliefs._of) <= known, "beliefs of requests that ended are kept"

    def _deliver(self, record: ReqTrajectory) -> None:
        params = self.engine._ended[record.req_id].request.params
        assert record.error is None
        assert self.engine.config.model.mask_token_id not in record.token_ids
        assert all(0 <= token < self.parts.vocab_size for token in record.token_ids)
        assert not set(params.stop_token_ids) & set(record.token_ids)
        options = self.parts.req_context.options
        length = options.gen_length if isinstance(options, CanvasOptions) else None
        limit = params.gen_length or length or params.max_tokens
        assert len(record.token_ids) <= limit
        assert record.completion_reason is not CompletionReason.LENGTH_TOKENS or len(record.token_ids) == limit
        self.records[record.req_id] = record


def tokens(records: Iterable[ReqTrajectory]) -> list[tuple[int, ...]]:
    """The answers."""
    return [record.token_ids for record in records]
