"""The block machine: what is fed, what is sampled, and what moves a block from one state to the next."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from diffulex_core.blocks import BlockRequest, BlockTable
from diffulex_core.pattern import AttentionPattern, BlockCausal, FullPrefix, Phase
from diffulex_core.sampling_params import DecodingThresholds
from diffulex_core.types import CARRIED, CompletionReason, Decision, Span
from tests.core.traces import EOS, MASK, accept_first, make_request, run


def test_blocks_behind_an_eos_are_dropped_while_the_tokens_before_it_are_decided() -> None:
    """B=4, N=3, P=8: EOS is decided at position 10 first; blocks 3 and 4 run already."""
    request = make_request(8, buffer_size=3, max_tokens=30)
    _step(request, 0, {8: 7})
    _step(request, 8, {12: 7})
    assert _step(request, 8, {10: EOS}).end == 20
    assert request.completion is None
    assert len(request.output_tokens) == 1
    for taken in ({}, {9: 7}):
        span = _step(request, 8, taken)
        assert span.end == 12
        assert [group.block for group in span.groups] == [2]
    assert request.completion is CompletionReason.STOP_EOS
    assert request.output_tokens.tolist() == [7, 7]


def test_no_block_starts_behind_an_eos() -> None:
    request = make_request(8, buffer_size=3, max_tokens=30, thresholds=DecodingThresholds(add_block_threshold=0.0))
    _step(request, 0, {10: EOS})
    for taken in ({}, {8: 7}):
        assert _step(request, 8, taken).end == 12
        assert request.canvas.running_blocks == ((2, "active"),)


def test_an_earlier_eos_replaces_a_later_one() -> None:
    request = make_request(8, buffer_size=3, max_tokens=30)
    _step(request, 0, {8: 7})
    _step(request, 8, {14: EOS, 9: 7})
    _step(request, 8, {10: EOS})
    assert request.completion is CompletionReason.STOP_EOS
    assert request.output_tokens.tolist() == [7, 7]


def test_a_block_costs_as_many_forwards_as_denoising_steps_whatever_the_prompt() -> None:
    for prompt_len in (4, 5, 6, 7, 8):
        rows = run(make_request(prompt_len, buffer_size=1, max_tokens=16, pattern=FullPrefix(block_size=4)), 1)
        assert len(rows) == 16


def test_a_block_keeps_its_full_width_at_the_limit_and_none_starts_behind_it() -> None:
    request = make_request(8, buffer_size=3, max_tokens=6)
    rows = run(request, 2)
    assert max(row.start + row.rows for row in rows) == 16
    assert request.output_tokens.tolist() == [7] * 6
    assert request.most_slots() == 16


def test_only_undecided_positions_are_sampled_from_the_row_of_their_own() -> None:
    request = make_request(6, buffer_size=2)
    span = request.plan(0, None)
    assert span is not None
    assert [group.positions.tolist() for group in span.groups] == [[6, 7], [8, 9, 10, 11]]
    assert [group.rows.tolist() for group in span.groups] == [[6, 7], [8, 9, 10, 11]]
    request.apply(span, accept_first(span, 1))
    later = request.plan(4, None)
    assert later is not None
    assert [group.positions.tolist() for group in later.groups] == [[7], [8, 9, 10, 11]]
    assert [group.rows.tolist() for group in later.groups] == [[3], [4, 5, 6, 7]]
    assert later.tokens.tolist() == [5, 6, 7, MASK, MASK, MASK, MASK, MASK]


def test_with_shifted_logits_a_position_is_sampled_from_the_row_before_it() -> None:
    request = make_request(6, shifted=True)
    span = _step(request, 0, {6: 7})
    assert [group.positions.tolist() for group in span.groups] == [[6, 7], [8, 9, 10, 11]]
    assert [group.rows.tolist() for group in span.groups] == [[5, 6], [7, 8, 9, 10]]
    assert (span.keep, span.store_from) == (3, 0)


def test_the_first_position_of_the_buffer_is_sampled_from_the_last_row_that_was_stored() -> None:
    request = make_request(8, shifted=True)
    assert _step(request, 0, {9: 7}).keep == 7
    for taken in ({10: 7}, {11: 7}):
        span = _step(request, 8, taken)
        assert (span.start, span.catch_up, span.keep) == (8, 0, None)
        assert span.groups[0].rows.tolist()[0] == CARRIED
    assert CARRIED not in span.groups[1].rows


@pytest.mark.parametrize("pattern", [BlockCausal(block_size=4), FullPrefix(block_size=4)])
def test_pieces_of_a_prompt_and_a_replayed_one_leave_their_last_stored_row(pattern: AttentionPattern) -> None:
    request = make_request(10, shifted=True, pattern=pattern, max_tokens=30)
    if not pattern.two_phase:
        piece = request.plan(0, 4)
        assert piece is not None
        assert (piece.end, piece.keep) == (4, 3)
    _step(request, 0, {10: 7, 11: 7})
    _step(request, 8, dict.fromkeys(range(12, 16), 7))
    replay = request.plan(0, 10)
    assert replay is not None
    assert (replay.end, replay.keep) == (10 if pattern.two_phase else 8, 7)


def test_a_row_that_is_neither_fed_nor_kept_is_fed_again_and_stores_nothing() -> None:
    request = make_request(8, shifted=True, max_tokens=20)
    span = request.plan(8, None)
    assert span is not None
    assert (span.start, span.end, span.store_from, span.store_until, span.catch_up) == (7, 12, 8, 8, 1)
    assert span.tokens.tolist() == [8, MASK, MASK, MASK, MASK]
    assert span.groups[0].rows.tolist() == [0, 1, 2, 3]
    assert span.keep == 7
    assert request.plan(8, 4) is None, "one row more than the block has"
    assert request.most_rows() == 9
    assert make_request(8, shifted=True, max_tokens=4).most_rows() == 5
    assert make_request(8, shifted=True, pattern=FullPrefix(block_size=4), max_tokens=4).most_rows() == 12
    _step(request, 8, {9: 7})
    assert _step(request, 8, {10: 7}).start == 8, "now it is kept"


def test_a_row_kept_for_another_position_does_not_stand_in() -> None:
    """Resumed in pieces, preempted again, and then found whole in the cache: the row kept is that of a piece."""
    request = make_request(8, shifted=True, max_tokens=20)
    _step(request, 0, {})
    piece = request.plan(0, 4)
    assert piece is not None
    request.apply(piece, accept_first(piece, 0))
    span = request.plan(8, None)
    assert span is not None
    assert (span.start, span.groups[0].rows.tolist()) == (7, [0, 1, 2, 3])


def test_only_blocks_that_left_the_buffer_may_come_from_shared_pages() -> None:
    """A complete block in the buffer is final, too, but its slot in the buffer decides when the next one starts."""
    for pattern, known in ((BlockCausal(block_size=4), 8), (FullPrefix(block_size=4), 0)):
        request = make_request(8, pattern=pattern)
        assert len(request.known_tokens) == known
        _step(request, 0, dict.fromkeys(range(8, 12), 7))
        assert request.canvas.running_blocks == ((2, "to_cache"),)
        assert len(request.known_tokens) == known
        _step(request, 8, {})
        assert request.known_tokens.tolist() == [*range(1, 9), 7, 7, 7, 7][: known + known // 2]
        assert len(request.stored_tokens) == 16


@pytest.mark.parametrize("positions", [[4], [9], [12], [8, 8]], ids=["prompt", "decided", "not running", "twice"])
def test_a_block_table_refuses_what_is_not_open_and_changes_nothing(positions: list[int]) -> None:
    table = BlockTable(np.arange(8), block_size=4, capacity=16, fill_token=MASK)
    table.activate()
    table.decide(np.array([9]), np.array([5]))
    with pytest.raises(ValueError, match="not all undecided positions"):
        table.decide(np.array([10, *positions]), np.full(1 + len(positions), 6))
    assert table.tokens[8:12].tolist() == [MASK, 5, MASK, MASK]
    assert (table.masks[2], table.frontier) == (3, 8)


def test_a_decided_token_that_equals_the_mask_is_decided_all_the_same() -> None:
    """Samplers never decide the mask, but the state does not rely on that."""
    request = make_request(4, buffer_size=1, max_tokens=4)
    _step(request, 0, dict.fromkeys(range(4, 8), MASK))
    assert request.completion is CompletionReason.LENGTH_TOKENS


@pytest.mark.parametrize(("threshold", "started"), [(0.0, 2), (0.25, 2), (0.26, 1), (0.5, 1), (1.0, 1)])
def test_add_block_threshold_is_the_share_that_the_last_block_needs(threshold: float, started: int) -> None:
    request = make_request(8, thresholds=DecodingThresholds(add_block_threshold=threshold))
    _step(request, 0, {9: 7})
    span = request.plan(8, None)
    assert span is not None
    assert len(span.groups) == started


@pytest.mark.parametrize(("threshold", "forced"), [(0.0, True), (0.25, True), (0.26, False), (1.0, False)])
def test_semi_complete_threshold_is_the_share_that_lets_the_next_block_decide_one(
    threshold: float, forced: bool
) -> None:
    request = make_request(8, thresholds=DecodingThresholds(semi_complete_threshold=threshold))
    _step(request, 0, {9: 7})
    span = request.plan(8, None)
    assert span is not None
    assert [group.force_one for group in span.groups] == [True, forced]


@pytest.mark.parametrize(("threshold", "started"), [(0.0, 2), (0.01, 1), (1.0, 1)])
def test_token_stability_threshold_holds_the_next_block_back(threshold: float, started: int) -> None:
    request = make_request(8, thresholds=DecodingThresholds(token_stability_threshold=threshold))
    _step(request, 0, {9: 7, 10: 7})
    span = request.plan(8, None)
    assert span is not None
    assert len(span.groups) == started
    _step(request, 8, {8: 7, 11: 7})
    assert request.canvas.running_blocks[0] == (2, "to_cache")


def test_accept_threshold_reaches_every_group_and_a_request_may_override_it() -> None:
    for own, expected in ({}, 0.7), ({"accept_threshold": 0.2}, 0.2):
        request = make_request(6, thresholds=DecodingThresholds(accept_threshold=0.7), overrides=own)
        span = request.plan(0, None)
        assert span is not None
        assert [group.accept_threshold for group in span.groups] == [expected, expected]


def test_tests_of_a_step_look_at_the_tokens_before_it() -> None:
    """Block 2 becomes semi-complete in the second step; block 3 may decide from the third on."""
    request = make_request(8)
    _step(request, 0, {8: 7})
    spans = [_step(request, 8, taken) for taken in ({9: 7, 10: 7, 11: 7}, {})]
    assert [[group.force_one for group in span.groups] for span in spans] == [[True, False], [True]]


@pytest.mark.parametrize("prompt_len", [1, 4, 6])
def test_the_first_block_always_decides_one(prompt_len: int) -> None:
    request = make_request(prompt_len, thresholds=DecodingThresholds(semi_complete_threshold=1.0))
    span = request.plan(0, None)
    assert span is not None
    assert span.groups[0].force_one


def test_a_block_waits_for_its_predecessor_before_it_is_stored() -> None:
    request = make_request(8, max_tokens=30)
    _step(request, 0, {8: 7})
    _step(request, 8, {12: 7, 13: 7, 14: 7, 15: 7})
    assert request.canvas.running_blocks == ((2, "active"), (3, "active"))
    _step(request, 8, {9: 7, 10: 7, 11: 7})
    assert request.canvas.running_blocks == ((2, "to_cache"), (3, "to_cache"))
    span = _step(request, 8, {})
    assert (span.end, span.store_until, len(span.groups)) == (16, 16, 0)
    assert len(request.canvas.running_blocks) == 0


def test_prompt_rows_of_a_two_phase_pattern_are_fed_in_prefill_and_the_tail_again_in_decode() -> None:
    request = make_request(6, pattern=FullPrefix(block_size=4))
    first = _step(request, 0, {6: 7})
    assert (first.phase, first.start, first.end, first.store_until) == (Phase.PREFILL, 0, 12, 4)
    second = _step(request, 4, {})
    assert (second.phase, second.start, second.catch_up) == (Phase.DECODE, 4, 0)


def test_a_resumed_two_phase_request_sees_its_prompt_as_in_prefill_then_catches_up() -> None:
    request = make_request(6, pattern=FullPrefix(block_size=4), max_tokens=30)
    _step(request, 0, {6: 7, 7: 7})
    _step(request, 4, dict.fromkeys(range(8, 12), 7))
    _step(request, 8, dict.fromkeys(range(12, 16), 7))
    replay = _step(request, 0, {})
    assert (replay.phase, replay.start, replay.end, replay.store_until) == (Phase.PREFILL, 0, 6, 4)
    assert (len(replay.groups), replay.advances, replay.catch_up) == (0, False, 6)
    catch_up = request.plan(4, None)
    assert catch_up is not None
    assert (catch_up.phase, catch_up.start, catch_up.catch_up) == (Phase.DECODE, 4, 8)
    assert catch_up.tokens[:8].tolist() == [5, 6, 7, 7, 7, 7, 7, 7]


def test_an_atomic_prompt_is_not_cut_and_a_resumed_one_only_behind_the_prompt() -> None:
    request = make_request(10, pattern=FullPrefix(block_size=4), max_tokens=30)
    assert not request.chunkable(0)
    assert request.plan(0, 15) is None
    assert request.plan(0, 16) is not None
    _step(request, 0, {10: 7, 11: 7})
    _step(request, 8, {})
    assert request.plan(0, 9) is None
    replay = request.plan(0, 10)
    assert replay is not None
    assert len(replay.tokens) == 10
    assert request.chunkable(8)
    chunk = request.plan(8, 4)
    assert chunk is not None
    assert (chunk.start, chunk.end, chunk.store_until) == (8, 12, 12)


@given(st.integers(1, 30), st.integers(0, 7), st.integers(4, 60))
@settings(deadline=None)
def test_a_cut_lies_on_a_block_boundary_within_the_budget(prompt_len: int, stored_blocks: int, budget: int) -> None:
    request = make_request(prompt_len)
    stored = min(stored_blocks, prompt_len // 4) * 4
    span = request.plan(stored, budget)
    whole = request.plan(stored, None)
    assert whole is not None
    if len(whole.tokens) <= budget:
        assert span is not None
        assert (span.end, span.advances) == (whole.end, True)
    elif not request.chunkable(stored):
        assert span is None
    else:
        assert span is not None
        assert span.end % 4 == 0
        assert 4 <= len(span.tokens) <= budget
        assert (span.store_until, len(span.groups), span.advances) == (span.end, 0, False)
        assert span.end == min(prompt_len // 4 * 4, stored + budget // 4 * 4)


def test_a_plan_changes_nothing() -> None:
    request = make_request(6)
    first, second = request.plan(0, None), request.plan(0, None)
    assert first is not None
    assert second is not None
    assert first.tokens.tolist() == second.tokens.tolist()
    first.tokens[:] = 0
    third = request.plan(0, None)
    assert third is not None
    assert third.tokens.tolist() == second.tokens.tolist()


@pytest.mark.parametrize(
    "positions",
    [[5], [12], [8, 8], [-1], [99]],
    ids=["prompt", "a block that does not run", "twice", "negative", "past the end"],
)
def test_a_decision_outside_the_asked_positions_is_refused_and_changes_nothing(positions: list[int]) -> None:
    request = make_request(8)
    span = request.plan(0, None)
    assert span is not None
    before = request.canvas
    with pytest.raises(ValueError, match="position"):
        request.apply(span, _decision(dict.fromkeys(positions, 7), positions))
    after = request.canvas
    assert after.running_blocks == before.running_blocks
    assert after.decided.tolist() == before.decided.tolist()
    assert (request.nfe, request.draws) == (0, 0)
    request.apply(span, accept_first(span, 1))


def test_a_piece_of_the_prompt_decides_nothing() -> None:
    request = make_request(8)
    span = request.plan(0, 4)
    assert span is not None
    with pytest.raises(ValueError, match="position"):
        request.apply(span, _decision({8: 7}, [8]))
    request.apply(span, accept_first(span, 4))
    assert (request.nfe, request.draws, len(request.output_tokens)) == (1, 0, 0)


def test_the_canvas_shows_the_answer_region_and_is_a_copy() -> None:
    request = make_request(6, buffer_size=2)
    _step(request, 0, {7: 5, 8: 6})
    canvas = request.canvas
    assert (canvas.start, canvas.committed, canvas.block_size) == (6, 0, 4)
    assert canvas.tokens.tolist() == [MASK, 5, 6, MASK, MASK, MASK]
    assert canvas.decided.tolist() == [False, True, True, False, False, False]
    assert canvas.running_blocks == ((1, "active"), (2, "active"))
    canvas.decided[:] = True
    assert not request.canvas.decided.all()
    _step(request, 4, {6: 5})
    _step(request, 4, {})
    assert request.canvas.committed == 2


def test_a_request_ended_from_outside_gives_its_longest_decided_prefix() -> None:
    request = make_request(4, buffer_size=2, max_tokens=12)
    _step(request, 0, {4: 1, 5: 2, 7: 3})
    request.finish(CompletionReason.ABORTED)
    assert request.output_tokens.tolist() == [1, 2]
    assert request.completion is CompletionReason.ABORTED


def _decision(taken: dict[int, int], asked: list[int]) -> Decision:
    return Decision(
        positions=np.array(asked, dtype=np.int64),
        tokens=np.array([taken.get(position, 0) for position in asked], dtype=np.int64),
        confidence=np.full(len(asked), 0.5, dtype=np.float32),
        accepted=np.array([position in taken for position in asked], dtype=np.bool_),
    )


def _step(request: BlockRequest, stored: int, taken: dict[int, int]) -> Span:
    """One forward in which exactly `taken` (position -> token) is decided."""
    span = request.plan(stored, None)
    assert span is not None
    asked = [int(position) for group in span.groups for position in group.positions]
    assert set(taken) <= set(asked)
    request.apply(span, _decision(taken, asked))
    return span
