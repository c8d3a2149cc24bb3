"""Our engine as a contender."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from benchmarks.bench.work import Answer, Work

from diffulex_core.engine import Diffulex
from diffulex_core.protocols import ModelRunner
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.types import StepOutput, StepPlan

NEVER = 1.0
"""A threshold that no probability exceeds: one position in each step."""


class Timed:
    """A runner that remembers how long it took."""

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self.seconds = 0.0

    def execute(self, plan: StepPlan) -> StepOutput:
        began = time.perf_counter()
        try:
            return self._runner.execute(plan)
        finally:
            self.seconds += time.perf_counter() - began

    def close(self) -> None:
        self._runner.close()


def engine_options(way: str, work: Work) -> dict[str, Any]:
    """Settings of an engine that does `work` by blocks (`multi_bd`, one block at a time) or on a canvas."""
    length = work.prompt + work.output
    shared = {"enable_prefix_caching": False, "max_model_len": length, "max_num_reqs": work.batch}
    if way == "canvas":
        page = 32
        most = length * work.batch
        alg = {} if work.threshold is None else {"alg": "confidence_threshold", "accept_threshold": work.threshold}
        own = {"decoding_strategy": "llada_canvas", "steps": work.steps, "block_length": work.block_length, **alg}
    else:
        page = max(32, work.block_length)
        most = max(length, 4096)
        threshold = NEVER if work.threshold is None else work.threshold
        own = {
            "decoding_strategy": "multi_bd",
            "block_size": work.block_length,
            "buffer_size": 1,
            "accept_threshold": threshold,
        }
    pages = (-(-length // page) + 1) * work.batch
    return {**shared, **own, "page_size": page, "num_pages": pages, "max_num_batched_tokens": most}


class Engine:
    """A contender: see `benchmarks.bench.child`. It decodes `way` = "blocks" or "canvas"."""

    def __init__(self, *, folder: str, config: Mapping[str, Any], dtype: str, way: str, **options: Any) -> None:
        self._folder, self._dtype, self._way, self._fixed = folder, dtype, way, options
        self._options: dict[str, Any] | None = None
        self._engine: Diffulex | None = None

    def prepare(self, work: Work, prompts: Sequence[Sequence[int]]) -> None:
        """Build the engine, unless the one at hand serves."""
        options = {**engine_options(self._way, work), **self._fixed}
        if options != self._options or self._engine is None:
            if self._engine is not None:
                self._engine.close()
            self._engine = Diffulex(self._folder, device="cpu", dtype=self._dtype, **options)
            parts = self._engine._parts  # noqa: SLF001, a runner of one's own has no way in
            assert parts is not None
            self._timed = Timed(parts.runner)
            self._engine._parts = attrs.evolve(parts, runner=self._timed)  # noqa: SLF001
            self._options = options
        self._prompts = [list(prompt) for prompt in prompts]
        self._params = SamplingParams(temperature=0.0, max_tokens=work.output, ignore_eos=True, max_nfe=2 * work.output)

    def run(self) -> Answer:
        """Answer the prompts in one batch."""
        assert self._engine is not None
        self._timed.seconds = 0.0
        outputs = self._engine.generate(self._prompts, self._params)
        failed = [answer.error for answer in outputs if answer.error is not None]
        if failed:
            raise RuntimeError(failed[0])
        steps = outputs.batch_step_count
        within = sum({each.step_id: each.step_time for answer in outputs for each in answer.trajectory}.values())
        commits = [answer.first_commit - answer.arrival for answer in outputs if answer.first_commit is not None]
        return Answer(
            tokens=[list(answer.token_ids) for answer in outputs],
            steps=steps,
            planned_steps=steps,
            rows=outputs.prefill_tokens + outputs.decode_rows,
            head_rows=outputs.head_rows,
            first_block=max(commits) if commits else None,
            outside=within - self._timed.seconds,
        )
