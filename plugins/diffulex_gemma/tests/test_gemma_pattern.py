"""Who sees whom: encoder rows are causal, a canvas sees everything, and sliding windows treat the two apart."""

from __future__ import annotations

import numpy as np
from hypothesis import given, strategies as st

from diffulex_core.packing import pack
from diffulex_core.pattern import AttentionPattern, Extent, Phase
from diffulex_gemma.pattern import CausalCanvas, causal_canvas
from tests.families.gemma import Fed, plan_of

PATTERN = causal_canvas(4)


@st.composite
def spans(draw: st.DrawFn) -> Fed:
    """A few positions anywhere, of which the first may be final and the others are a canvas."""
    start, final, canvas = draw(st.integers(0, 20)), draw(st.integers(0, 9)), draw(st.integers(0, 5))
    count = max(1, final + canvas)
    return Fed(tokens=[0] * count, start=start, final_end=start + final, table=range(40))


def sees(fed: Fed, query: int, key: int, window: int | None) -> bool:
    """The rule in words: what is encoded is never influenced by what comes after it or by a canvas."""
    end = fed.start + len(fed.tokens)
    if query < fed.final_end:
        return key <= query and (window is None or query - key < window)
    return key < end and (key >= fed.final_end or window is None or fed.final_end - key < window)


@given(fed=spans(), window=st.sampled_from([None, 1, 2, 5, 100]))
def test_a_packed_span_sees_what_the_rule_says(fed: Fed, window: int | None) -> None:
    [visibility] = pack(plan_of([fed]), PATTERN, (window,), 4).layout.visibility
    for row in range(len(fed.tokens)):
        query = fed.start + row
        seen = set(range(visibility.key_start[row], visibility.key_end[row]))
        assert seen == {key for key in range(query + 50) if sees(fed, query, key, window)}


def test_every_row_of_a_canvas_sees_the_same_keys_of_a_sliding_layer() -> None:
    positions = np.arange(8, 20)
    extent = Extent(prompt_len=3, phase=Phase.DECODE, final_end=12, end=20)
    assert PATTERN.key_start(positions, extent, 5).tolist() == [4, 5, 6, 7, *[8] * 8]
    assert PATTERN.key_end(positions, extent).tolist() == [9, 10, 11, 12, *[20] * 8]


def test_stored_keys_depend_on_what_precedes_them_so_that_any_prompts_may_share_them() -> None:
    assert isinstance(PATTERN, AttentionPattern)
    assert CausalCanvas(block_size=4) == PATTERN
    assert [PATTERN.dependency_end(at, 9) for at in (0, 8, 30)] == [1, 9, 31]
    assert PATTERN.sharing_scope(3) == PATTERN.sharing_scope(99)
    assert not PATTERN.two_phase
