"""Building requests and schedulers of one setting, and driving them to the end."""

from __future__ import annotations

from collections.abc import Iterable

import attrs
import numpy as np
from hypothesis import strategies as st

from diffulex_core.blocks import BlockRequest
from diffulex_core.kv_cache import PagedKVCache
from diffulex_core.pattern import AttentionPattern
from diffulex_core.req_context import ReqContext
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.scheduler import ContinuousScheduler
from diffulex_core.testing import workload
from diffulex_core.testing.fakes import EOS, MASK, HashRunner
from tests.core.oracles import Ask, Setting

PLAIN = Setting(
    block_size=4,
    buffer_size=2,
    full_prefix=False,
    mask=MASK,
    eos=frozenset({EOS}),
    max_model_len=64,
    add_block=0.1,
    semi_complete=0.9,
    accept=0.9,
    stability=0.0,
    always_force=False,
)


def ask(prompt_len: int, *, seed: int = 0, max_tokens: int = 12, first: int = 0, ignore_eos: bool = True) -> Ask:
    """A request over the prompt `first`, `first + 1`, ..."""
    prompt = workload.ask(prompt_len, first=first).prompt
    return Ask(prompt=prompt, seed=seed, max_tokens=max_tokens, ignore_eos=ignore_eos)


def settings_of_engines(*, max_model_len: int = 40) -> st.SearchStrategy[Setting]:
    """What the requests of an engine share: multi_bd with one or several blocks, and d2f."""
    return workload.settings(max_model_len=max_model_len).map(_as_the_oracle_has_it)


def _as_the_oracle_has_it(made: workload.Setting) -> Setting:
    given = {name: value for name, value in attrs.asdict(made).items() if name != "whole_canvas"}
    return Setting(**given, mask=MASK, eos=frozenset({EOS}))


@st.composite
def asks(draw: st.DrawFn, *, longest_prompt: int = 14) -> Ask:
    """A request; prompts are few, so that they share prefixes."""
    made = draw(workload.asks(longest_prompt=longest_prompt))
    return Ask(
        prompt=made.prompt,
        seed=made.seed,
        max_tokens=made.max_tokens,
        ignore_eos=made.ignore_eos,
        stop=made.stop,
        repetition=draw(st.sampled_from([None, None, 2])),
    )


def pattern_of(setting: Setting) -> AttentionPattern:
    return _as_the_kit_has_it(setting).pattern


def context_of(setting: Setting) -> ReqContext:
    made = _as_the_kit_has_it(setting).context
    return attrs.evolve(made, mask_token_id=setting.mask, eos_token_ids=setting.eos)


def _as_the_kit_has_it(setting: Setting) -> workload.Setting:
    given = {name: value for name, value in attrs.asdict(setting).items() if name not in ("mask", "eos")}
    return workload.Setting(**given)


def request_of(setting: Setting, ask: Ask, request_id: int = 0, max_nfe: int | None = None) -> BlockRequest:
    return BlockRequest(
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
        context=context_of(setting),
    )


@attrs.frozen
class Service:
    """A scheduler with its pages and a runner for one setting."""

    scheduler: ContinuousScheduler
    cache: PagedKVCache
    runner: HashRunner

    @classmethod
    def of(
        cls,
        setting: Setting,
        *,
        num_pages: int = 200,
        page_size: int | None = None,
        budget: int = 1000,
        max_num_reqs: int = 8,
        prefix_caching: bool = True,
    ) -> Service:
        page_size = page_size or setting.block_size
        pattern = pattern_of(setting)
        cache = PagedKVCache(num_pages=num_pages, page_size=page_size, pattern=pattern, prefix_caching=prefix_caching)
        scheduler = ContinuousScheduler(
            cache, max_num_reqs=max_num_reqs, max_num_batched_tokens=budget, block_size=setting.block_size
        )
        return cls(scheduler, cache, HashRunner(pattern=pattern, num_pages=num_pages, page_size=page_size))

    def run(self, requests: Iterable[BlockRequest], limit: int = 2000) -> list[int]:
        """Serve the requests to their end; returns the rows of each step."""
        for request in requests:
            self.scheduler.add(request)
        rows: list[int] = []
        while (plan := self.scheduler.schedule()) is not None:
            rows.append(plan.rows)
            assert len(rows) < limit, "the scheduler makes no progress"
            self.scheduler.update(plan, self.runner.execute(plan))
        self.scheduler.check_integrity()
        return rows
