"""Requests of the strategy fast_dllm_v2 on the network of hashes, without an engine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import attrs
import numpy as np

from diffulex_core.kv_cache import PagedKVCache
from diffulex_core.pattern import BlockCausal
from diffulex_core.req_context import ReqContext
from diffulex_core.sampling_params import DecodingThresholds, SamplingParams
from diffulex_core.scheduler import ContinuousScheduler
from diffulex_core.testing.fakes import HashRunner
from diffulex_core.types import Decision, Span
from diffulex_fastdllm.options import DualCacheOptions
from diffulex_fastdllm.request import DualCacheRequest
from tests.core.oracles import Ask
from tests.families.oracle_dual_cache import DualSetting


class Watched(DualCacheRequest):
    """A request that remembers what it did."""

    def __init__(self, *, request_id: int, prompt: np.ndarray, params: SamplingParams, context: ReqContext) -> None:
        super().__init__(request_id=request_id, prompt=prompt, params=params, context=context)
        self.lost: list[int] = []
        """Machine steps before which it was preempted."""
        self.modes: list[str] = []
        self.fed: list[Span] = []

    def apply(self, span: Span, decision: Decision) -> None:
        self.fed.append(span)
        if span.advances:
            self.modes.append(self.mode.value)
        super().apply(span, decision)

    def preempted(self) -> None:
        self.lost.append(self.draws)
        super().preempted()


def watched(setting: DualSetting, ask: Ask, request_id: int = 0, max_nfe: int | None = None) -> Watched:
    return Watched(
        request_id=request_id,
        prompt=np.array(ask.prompt, dtype=np.int64),
        params=SamplingParams(
            seed=ask.seed,
            max_tokens=ask.max_tokens,
            max_nfe=max_nfe,
            ignore_eos=ask.ignore_eos,
            stop_token_ids=tuple(ask.stop),
            max_repetition_run=ask.repetition,
        ),
        context=ReqContext(
            pattern=BlockCausal(block_size=setting.block_size),
            buffer_size=setting.sub_blocks,
            mask_token_id=setting.mask,
            eos_token_ids=setting.eos,
            max_model_len=setting.max_model_len,
            thresholds=DecodingThresholds(accept_threshold=setting.accept),
            shifted=True,
            options=DualCacheOptions(fdv2_use_block_cache=setting.use_block_cache),
        ),
    )


@attrs.frozen
class DualService:
    """A scheduler with its pages and a runner."""

    scheduler: ContinuousScheduler
    cache: PagedKVCache
    runner: HashRunner
    rows: list[int] = attrs.field(factory=list)
    """Of each step so far."""

    @classmethod
    def of(
        cls,
        setting: DualSetting,
        *,
        num_pages: int = 200,
        page_size: int | None = None,
        budget: int = 1000,
        max_num_reqs: int = 8,
        prefix_caching: bool = True,
    ) -> DualService:
        pattern = BlockCausal(block_size=setting.block_size)
        size = page_size or setting.sub_size
        cache = PagedKVCache(num_pages=num_pages, page_size=size, pattern=pattern, prefix_caching=prefix_caching)
        scheduler = ContinuousScheduler(
            cache, max_num_reqs=max_num_reqs, max_num_batched_tokens=budget, block_size=setting.block_size
        )
        return cls(scheduler, cache, HashRunner(pattern=pattern, num_pages=num_pages, page_size=size))

    def step(self) -> Sequence[int] | None:
        """Ids of the requests that were fed, or None when nothing is left to do."""
        plan = self.scheduler.schedule()
        if plan is None:
            return None
        self.rows.append(plan.rows)
        self.scheduler.update(plan, self.runner.execute(plan))
        self.scheduler.check_integrity()
        return [window.request_id for window in plan.windows]

    def run(self, requests: Iterable[DualCacheRequest], limit: int = 2000) -> None:
        """Serve the requests to their end."""
        for request in requests:
            self.scheduler.add(request)
        while self.step() is not None:
            assert len(self.rows) < limit, "the scheduler makes no progress"
