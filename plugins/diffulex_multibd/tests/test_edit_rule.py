"""The request under edit sampling, step by step, with proposals made by hand."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from diffulex_core.blocks import BlockRequest
from diffulex_core.pattern import BlockCausal
from diffulex_core.req_context import ReqContext
from diffulex_core.sampling_params import DecodingThresholds, SamplingParams
from diffulex_core.types import CompletionReason, Decision, Span
from diffulex_multibd.edit import edit_request
from diffulex_multibd.options import EditOptions

MASK, EOS = 99, 98


def request_of(
    prompt_len: int = 4,
    *,
    options: EditOptions | None = None,
    max_tokens: int = 8,
    edit: float = 0.2,
    remask: float = 0.3,
    last_of_prompt: int | None = None,
) -> BlockRequest:
    return edit_request(
        request_id=0,
        prompt=np.array([*range(prompt_len - 1), prompt_len - 1 if last_of_prompt is None else last_of_prompt]),
        params=SamplingParams(max_tokens=max_tokens, temperature=0.0),
        context=ReqContext(
            pattern=BlockCausal(block_size=4),
            buffer_size=2,
            mask_token_id=MASK,
            eos_token_ids=frozenset({EOS}),
            max_model_len=64,
            thresholds=DecodingThresholds(accept_threshold=0.5, edit_threshold=edit, remask_threshold=remask),
            options=options or EditOptions(),
        ),
    )


def step(
    request: BlockRequest, stored: int, tokens: Mapping[int, int], *, sure: float = 0.9, believed: float = 1.0
) -> Span:
    """One forward whose model wants `tokens` there, and everywhere else what stands there; masks become 7."""
    span = request.plan(stored, None)
    assert span is not None
    positions = np.concatenate([group.positions for group in span.groups])
    table = request.blocks
    wanted = [tokens.get(at, int(table.tokens[at]) if table.decided[at] else 7) for at in positions.tolist()]
    request.apply(
        span,
        Decision(
            positions=positions,
            tokens=np.array(wanted),
            confidence=np.full(len(positions), sure, dtype=np.float32),
            accepted=np.zeros(len(positions), dtype=np.bool_),
            watched=np.full(len(positions), believed, dtype=np.float32),
        ),
    )
    return span


def test_a_block_is_stored_after_a_step_in_which_the_model_agrees_with_it() -> None:
    request = request_of()
    step(request, 0, {})
    step(request, 4, {5: 8})
    assert request.canvas.running_blocks == ((1, "active"), (2, "active"))
    assert step(request, 4, {9: 8}).store_until == 4
    assert request.canvas.running_blocks == ((1, "to_cache"), (2, "active"))
    span = request.plan(4, None)
    assert span is not None
    assert span.store_until == 8
    assert span.tokens[:4].tolist() == [7, 8, 7, 7]
    assert [group.block for group in span.groups] == [2]


def test_output_holds_final_tokens_while_the_request_runs_and_all_that_are_decided_once_it_ended() -> None:
    request = request_of()
    step(request, 0, {})
    assert request.output_tokens.tolist() == []
    request.finish(CompletionReason.ABORTED)
    assert request.output_tokens.tolist() == [7, 7, 7, 7]


def test_an_end_of_text_that_is_edited_away_ends_nothing_and_lets_blocks_start_again() -> None:
    request = request_of()
    step(request, 0, {6: EOS})
    assert request.completion is None
    assert step(request, 4, {6: 5}).end == 8
    assert step(request, 4, {}).end == 12
    while request.completion is None:
        step(request, 4 if request.canvas.committed == 0 else 8, {})
    assert request.completion is CompletionReason.LENGTH_TOKENS
    assert request.output_tokens.tolist() == [7, 7, 5, 7, 7, 7, 7, 7]


def test_an_end_of_text_counts_once_its_block_is_settled() -> None:
    request = request_of()
    step(request, 0, {6: EOS})
    step(request, 4, {})
    assert request.completion is CompletionReason.STOP_EOS
    assert request.output_tokens.tolist() == [7, 7]


def test_an_end_of_text_in_the_prompt_ends_nothing() -> None:
    request = request_of(6, last_of_prompt=EOS)
    step(request, 0, {})
    step(request, 4, {})
    assert request.completion is None
    assert request.output_tokens.tolist() == [7] * 6


def test_unsure_edits_are_not_made() -> None:
    request = request_of()
    step(request, 0, {})
    step(request, 4, {5: 8}, sure=0.15)
    assert request.blocks.tokens[5] == 7
    assert request.canvas.running_blocks[0] == (1, "to_cache")


@pytest.mark.parametrize(("sure", "replaced"), [(0.2, True), (0.19999999, False)])
def test_an_edit_is_judged_by_its_float32_probability_and_the_exact_threshold(sure: float, replaced: bool) -> None:
    assert (float(np.float32(sure)) > 0.2) is replaced
    request = request_of()
    step(request, 0, {})
    step(request, 4, {5: 8}, sure=sure)
    assert request.blocks.tokens[5] == (8 if replaced else 7)


def test_a_probability_at_its_threshold_neither_fills_nor_replaces_nor_returns_to_mask() -> None:
    request = request_of(options=EditOptions(enable_remask=True), edit=0.5, remask=0.5)
    step(request, 0, {}, sure=0.5)
    assert request.blocks.decided[4:8].tolist() == [True, False, False, False]
    step(request, 4, {4: 8}, sure=0.5, believed=0.5)
    assert request.blocks.tokens[4] == 7
    assert request.blocks.decided[4:8].tolist() == [True, True, False, False]


def test_a_filled_block_that_never_agrees_is_stored_without_the_last_edits() -> None:
    request = request_of(options=EditOptions(max_post_edit_steps=2))
    step(request, 0, {})
    for number in range(3):
        step(request, 4, {5: 20 + number})
    assert request.blocks.tokens[5] == 21
    assert request.canvas.running_blocks[0] == (1, "to_cache")


def test_a_block_that_takes_too_many_steps_takes_all_proposals_and_is_stored() -> None:
    request = request_of(options=EditOptions(max_post_edit_steps=0, enable_remask=True))
    for number in range(5):
        assert request.canvas.running_blocks[:1] != ((1, "to_cache"),)
        step(request, 0 if number == 0 else 4, {}, sure=0.4, believed=0.1)
    assert request.canvas.running_blocks[0] == (1, "to_cache")
    assert request.blocks.masks[1] == 0


def test_the_block_that_the_prompt_ends_in_has_one_forward_less() -> None:
    request = request_of(5, options=EditOptions(max_post_edit_steps=0))
    for number in range(3):
        step(request, 0 if number == 0 else 4, {}, sure=0.4)
    assert request.blocks.masks[1] == 0
    step(request, 4, {5: 20}, sure=0.4)
    assert request.blocks.tokens[5] == 20
    assert request.canvas.running_blocks[0] == (1, "to_cache")


def test_a_token_that_is_not_believed_returns_to_mask_once() -> None:
    request = request_of(options=EditOptions(enable_remask=True))
    step(request, 0, {}, sure=0.4)
    assert request.blocks.decided[4:8].tolist() == [True, False, False, False]
    step(request, 4, {}, sure=0.4, believed=0.2)
    assert request.blocks.decided[4:8].tolist() == [False, True, False, False]
    step(request, 4, {}, sure=0.4, believed=0.2)
    assert request.blocks.decided[4:8].tolist() == [True, False, False, False]
    step(request, 4, {}, sure=0.4, believed=0.2)
    assert request.blocks.decided[4:8].tolist() == [True, True, False, False]


def test_an_answer_that_is_cut_short_ends_before_a_token_that_returned_to_mask() -> None:
    request = request_of(options=EditOptions(enable_remask=True))
    step(request, 0, {}, sure=0.4)
    step(request, 4, {}, sure=0.4)
    assert request.blocks.decided[4:8].tolist() == [True, True, False, False]
    step(request, 4, {}, sure=0.4, believed=0.2)
    assert request.blocks.decided[4:8].tolist() == [False, False, True, False]
    request.finish(CompletionReason.ABORTED)
    assert request.output_tokens.tolist() == []


def test_prompt_positions_are_never_asked() -> None:
    span = request_of(6).plan(0, None)
    assert span is not None
    assert span.groups[0].positions.tolist() == [6, 7]


def test_the_token_before_is_discouraged_within_a_block_only() -> None:
    span = request_of(6, options=EditOptions(penalty_lambda=1.5)).plan(0, None)
    assert span is not None
    [own, following] = span.groups
    assert own.discouraged is not None
    assert following.discouraged is not None
    assert own.discouraged.tolist() == [5, -1]
    assert following.discouraged.tolist() == [-1, -1, -1, -1]
    assert own.penalty == 1.5


def test_a_decision_that_does_not_answer_the_question_is_refused() -> None:
    request = request_of()
    span = request.plan(0, None)
    assert span is not None
    empty = np.empty(0, dtype=np.int64)
    answer = Decision(
        positions=empty, tokens=empty, confidence=np.empty(0, dtype=np.float32), accepted=np.empty(0, dtype=np.bool_)
    )
    with pytest.raises(ValueError, match="does not answer"):
        request.apply(span, answer)
    assert request.nfe == 0
    assert request.canvas.running_blocks == ()
