"""Made-up steps: a small one before the first request, so that no answer pays for set-up, and the largest one."""

from __future__ import annotations

import numpy as np

from diffulex_core.pattern import Phase
from diffulex_core.protocols import ModelRunner
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.types import SampleGroup, Span, StepPlan, Window


def warm_up(runner: ModelRunner, *, rows: int, num_pages: int, page_size: int) -> None:
    """Run one block of token 0 through model and sampler; what it leaves in the pages is never read."""
    rows = min(rows, num_pages * page_size)
    window = _window(0, rows=rows, start=0, pages=num_pages, page_size=page_size, sampled=True, remember=False)
    runner.execute(StepPlan(step=-1, windows=(window,)))


def large_step(
    *, rows: int, window_rows: int, sampled_windows: int, length: int, pages: int, page_size: int, remember: bool
) -> StepPlan:
    """A step of token 0 at the end of the longest sequences, which share a few pages.

    Args:
        rows: of the step.
        window_rows: most rows of one request.
        sampled_windows: most requests whose rows are sampled, every row of them by drawing; the others are prefill.
        length: positions of a sequence.
        pages: that the step may write to.
        page_size: their slots.
        remember: what the step believes of sampled rows is kept.
    """
    window_rows = min(window_rows, length)
    windows = [
        _window(
            index,
            rows=min(window_rows, rows - begin),
            start=length - window_rows,
            pages=pages,
            page_size=page_size,
            sampled=index < sampled_windows,
            remember=remember and index < sampled_windows,
        )
        for index, begin in enumerate(range(0, rows, window_rows))
    ]
    return StepPlan(step=-1, windows=tuple(windows))


def _window(index: int, *, rows: int, start: int, pages: int, page_size: int, sampled: bool, remember: bool) -> Window:
    at = np.arange(start, start + rows)
    group = SampleGroup(block=0, positions=at, rows=np.arange(rows), accept_threshold=1.0, force_one=False)
    span = Span(
        start=start,
        tokens=np.zeros(rows, dtype=np.int64),
        catch_up=0,
        store_until=start,
        phase=Phase.DECODE,
        groups=(group,) if sampled else (),
        advances=False,
        remember=remember,
    )
    return Window(
        request_id=-1 - index,
        span=span,
        prompt_len=0,
        page_table=np.arange(-(-(start + rows) // page_size)) % pages,
        params=SamplingParams(temperature=1.0 if start else 0.0),
        draw=0,
    )
