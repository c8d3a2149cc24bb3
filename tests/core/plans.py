"""Plans of one window, for tests that look at few of its fields."""

from __future__ import annotations

import numpy as np

from diffulex_core.pattern import Phase
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.types import Span, StepPlan, Window


def plan_of(*, catch_up: int, rows: int = 8) -> StepPlan:
    """Rows of one request, the first of them known."""
    span = Span(
        start=0,
        tokens=np.zeros(rows, dtype=np.int64),
        catch_up=catch_up,
        store_until=0,
        phase=Phase.DECODE,
        groups=(),
        advances=True,
    )
    window = Window(
        request_id=0, span=span, prompt_len=catch_up, page_table=np.arange(2), params=SamplingParams(), draw=0
    )
    return StepPlan(step=0, windows=(window,))
