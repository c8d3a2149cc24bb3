"""One forward before the first request, so that the first answer does not pay for set-up."""

from __future__ import annotations

import numpy as np

from diffulex_core.pattern import Phase
from diffulex_core.protocols import ModelRunner
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.types import SampleGroup, Span, StepPlan, Window


def warm_up(runner: ModelRunner, *, rows: int, num_pages: int, page_size: int) -> None:
    """Run one block of token 0 through model and sampler; what it leaves in the pages is never read."""
    rows = min(rows, num_pages * page_size)
    at = np.arange(rows)
    group = SampleGroup(block=0, positions=at, rows=at, accept_threshold=1.0, force_one=False)
    span = Span(
        start=0,
        tokens=np.zeros(rows, dtype=np.int64),
        catch_up=0,
        store_until=0,
        phase=Phase.DECODE,
        groups=(group,),
        advances=False,
    )
    window = Window(
        request_id=-1,
        span=span,
        prompt_len=0,
        page_table=np.arange(-(-rows // page_size)),
        params=SamplingParams(temperature=0.0),
        draw=0,
    )
    runner.execute(StepPlan(step=-1, windows=(window,)))
