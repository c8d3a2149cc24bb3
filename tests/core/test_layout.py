"""The layout of a step is used again as long as it is the same, and only then."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import numpy as np
import pytest
from hypothesis import assume, given, settings, strategies as st

from diffulex_core.columns import Spans, Windows
from diffulex_core.layout import Layout
from diffulex_core.packing import pack
from diffulex_core.pattern import FullPrefix, Phase
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.types import Guidance, SampleGroup, Span, StepPlan, Window
from tests.core.test_packing import Step, steps

PATTERN = FullPrefix(block_size=4)


def window(number: int) -> Window:
    """A prompt and the blocks behind it, of which the first two are stored."""
    span = Span(
        start=0,
        tokens=np.arange(12) + number,
        catch_up=0,
        store_until=8,
        phase=Phase.PREFILL,
        groups=(
            SampleGroup(block=2, positions=np.array([9]), rows=np.array([9]), accept_threshold=0.5, force_one=True),
        ),
        advances=True,
    )
    return Window(
        request_id=number,
        span=span,
        prompt_len=3,
        page_table=np.array([5, 2, 7]) + 10 * number,
        params=SamplingParams(),
        draw=0,
    )


def laid_out(windows: Sequence[Window], before: Layout | None = None) -> Layout:
    return pack(StepPlan(step=0, windows=tuple(windows)), PATTERN, (None, 6), 4, before).layout


def with_span(window: Window, **changes: Any) -> Window:
    return attrs.evolve(window, span=attrs.evolve(window.span, **changes))


def arrays(layout: Layout) -> list[list[Any]]:
    """Everything that a layout says."""
    return [
        *(each.tolist() for each in (layout.offsets, layout.positions, layout.slots, layout.row_sequence)),
        *(each.tolist() for each in (layout.final, layout.page_tables)),
        *(each.tolist() for kind in layout.visibility for each in (kind.key_start, kind.key_end)),
        *(list(kind.runs) for kind in layout.visibility),
    ]


SAME: dict[str, Callable[[Window], Window]] = {
    "tokens": lambda w: with_span(w, tokens=w.span.tokens + 1),
    "what is asked": lambda w: with_span(w, groups=()),
    "whose": lambda w: attrs.evolve(w, request_id=w.request_id + 50),
    "parameters": lambda w: attrs.evolve(w, params=SamplingParams(temperature=0.3), draw=7, preemptions=2),
    "a copy of its pages": lambda w: attrs.evolve(w, page_table=w.page_table.copy()),
}
OTHER: dict[str, Callable[[Window], Window]] = {
    "start": lambda w: with_span(w, start=4, tokens=np.arange(8)),
    "end": lambda w: with_span(w, tokens=np.arange(8)),
    "what is stored from": lambda w: with_span(w, store_from=6),
    "what is stored until": lambda w: with_span(w, store_until=12),
    "phase": lambda w: with_span(w, phase=Phase.DECODE),
    "prompt": lambda w: attrs.evolve(w, prompt_len=10),
    "a page": lambda w: attrs.evolve(w, page_table=w.page_table + np.array([0, 1, 0])),
    "one page more": lambda w: attrs.evolve(w, page_table=np.array([*w.page_table.tolist(), 3])),
    "guidance": lambda w: attrs.evolve(
        with_span(w, guidance=Guidance(tokens=w.span.tokens, scale=0.5)), second_table=w.page_table + 100
    ),
}


@pytest.mark.parametrize("change", SAME.values(), ids=SAME)
def test_it_is_used_again_while_rows_stand_where_they_stood(change: Callable[[Window], Window]) -> None:
    windows = [window(0), window(1)]
    before = laid_out(windows)
    assert laid_out([windows[0], change(windows[1])], before) is before


@pytest.mark.parametrize("change", OTHER.values(), ids=OTHER)
def test_it_is_made_anew_where_anything_differs(change: Callable[[Window], Window]) -> None:
    windows = [window(0), window(1)]
    changed = [windows[0], change(windows[1])]
    before, fresh = laid_out(windows), laid_out(changed)
    again = laid_out(changed, before)
    assert again is not before
    assert arrays(again) == arrays(fresh) != arrays(before)
    assert laid_out(windows, fresh) is not fresh


def test_windows_that_say_more_are_always_laid_out_anew() -> None:
    guided = OTHER["guidance"](window(0))
    before = laid_out([guided])
    assert laid_out([guided], before) is not before


def test_windows_that_see_further_than_their_numbers_say_are_told_from_those_that_do_not() -> None:
    near = with_span(attrs.evolve(window(0), prompt_len=11), tokens=np.arange(8), groups=())
    far = with_span(near, visible_end=12)
    fresh = laid_out([far])
    assert arrays(laid_out([far], laid_out([near]))) == arrays(fresh) != arrays(laid_out([near]))
    assert arrays(laid_out([near], fresh)) == arrays(laid_out([near]))


def test_another_number_of_windows_is_another_layout() -> None:
    before = laid_out([window(0), window(1)])
    assert laid_out([window(0)], before) is not before
    assert laid_out([window(0), window(1), window(2)], before) is not before


@given(steps(), steps(), st.data())
@settings(deadline=None)
def test_it_never_depends_on_the_step_before(first: Step, second: Step, data: st.DataObject) -> None:
    """Of a step whose windows are partly those of the step before, and partly others."""
    fitting = [each for each in second.plan.windows if len(each.page_table) * first.page_size >= each.span.end]
    windows = data.draw(st.lists(st.sampled_from([*first.plan.windows, *fitting]), min_size=1, max_size=4))
    windows = data.draw(st.sampled_from([windows, [*first.plan.windows]]))
    assume(all(each.span.end % first.pattern.block_size == 0 for each in windows))

    def pack_after(before: Layout | None) -> Layout:
        return pack(StepPlan(step=1, windows=tuple(windows)), first.pattern, (None, 3), first.page_size, before).layout

    before = pack(first.plan, first.pattern, (None, 3), first.page_size).layout
    assert arrays(pack_after(before)) == arrays(pack_after(None))


def test_who_made_the_columns_may_write_into_them_afterwards() -> None:
    windows = Windows.of([window(0), window(1)])
    before = pack(StepPlan(step=0, windows=windows), PATTERN, (None, 6), 4).layout
    windows.spans.numbers[4, 1] = 12
    after = pack(StepPlan(step=1, windows=windows), PATTERN, (None, 6), 4, before).layout
    assert after is not before
    assert after.final.sum() == before.final.sum() + 4


def test_columns_and_windows_are_alike() -> None:
    windows = Windows.of([window(0), window(1)])
    made = attrs.evolve(windows, spans=Spans.joined([windows.spans]), given=None)
    before = laid_out([window(0), window(1)])
    assert pack(StepPlan(step=1, windows=made), PATTERN, (None, 6), 4, before).layout is before
