"""Strategies that revise tokens: what schedule, pages and neighbours must not change, and what ends an answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from diffulex_core.errors import ConfigError
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.types import CompletionReason
from tests.families.revising_serving import COMMON, DMAX, EDIT, serve
from tests.integration.engines import MASK, engine, prompt

STRATEGIES: dict[str, Mapping[str, Any]] = {
    "edit": EDIT,
    "edit with remasking": {**EDIT, "enable_remask": True, "edit_threshold": 0.5, "penalty_lambda": 0.5},
    "dmax": {**DMAX, "accept_threshold": 0.3},
    "dmax, smooth and exact": {
        **DMAX,
        "token_merge_mode": "iter_smooth_topk",
        "token_merge_top_k": 3,
        "exact_confidence": True,
        "max_post_edit_steps": 3,
    },
}
DOUBTING: Mapping[str, Any] = {
    **EDIT,
    "enable_remask": True,
    "accept_threshold": 0.95,
    "edit_threshold": 0.8,
    "remask_threshold": 0.9,
}
"""Settings under which many tokens return to mask."""
EACH = pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
PROMPTS = [prompt(16), prompt(11, 1), prompt(3, 2)]


@pytest.mark.parametrize(
    ("strategy", "temperature"), [*zip(STRATEGIES.values(), (1.0, 0.0, 0.0, 1.0), strict=True)], ids=STRATEGIES
)
def test_an_answer_is_the_same_alone_batched_chunked_and_on_larger_pages(
    strategy: Mapping[str, Any], temperature: float
) -> None:
    drawn = {"temperature": temperature, "seed": 5}
    alone = [serve([each], strategy, **drawn)[0].token_ids for each in PROMPTS]
    for settings in ({}, {"max_num_batched_tokens": 24, "max_logits_tokens": 7}, {"page_size": 16}):
        together = serve(PROMPTS, strategy, settings=settings, **drawn)
        assert [answer.token_ids for answer in together] == alone


@EACH
def test_an_answer_survives_preemption(strategy: Mapping[str, Any]) -> None:
    undisturbed = serve(PROMPTS, strategy)
    disturbed = serve(PROMPTS, strategy, settings={"num_pages": 9})
    assert sum(answer.preemptions for answer in disturbed) > 0
    assert [answer.token_ids for answer in disturbed] == [answer.token_ids for answer in undisturbed]


@EACH
def test_a_prompt_that_is_cached_gets_the_same_answer(strategy: Mapping[str, Any]) -> None:
    asked = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
    with engine("llada2", **{**COMMON, **strategy}) as ready:
        first = ready.generate([prompt(19)], asked)[0]
        again = ready.generate([prompt(19)], asked)[0]
    assert first.cached_tokens == 0
    assert again.cached_tokens == 16
    assert again.token_ids == first.token_ids


@pytest.mark.parametrize(("strategy", "shared"), [(EDIT, 32), (DMAX, 16)], ids=["edit", "dmax"])
def test_pages_of_an_answer_are_shared_where_tokens_say_all_about_them(
    strategy: Mapping[str, Any], shared: int
) -> None:
    asked = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
    with engine("llada2", **{**COMMON, **strategy}) as ready:
        [answer] = ready.generate([prompt(16)], asked)
        [following] = ready.generate([[*prompt(16), *answer.token_ids]], asked)
    assert following.cached_tokens == shared


@EACH
def test_a_smaller_limit_gives_a_prefix_and_no_answer_holds_a_mask(strategy: Mapping[str, Any]) -> None:
    whole = serve([prompt(11)], strategy, max_tokens=29)[0].token_ids
    assert len(whole) == 29
    assert MASK not in whole
    for limit in (1, 5, 13, 21):
        assert serve([prompt(11)], strategy, max_tokens=limit)[0].token_ids == whole[:limit]


@EACH
def test_a_request_that_is_aborted_or_out_of_forwards_answers_what_it_has_and_frees_its_pages(
    strategy: Mapping[str, Any],
) -> None:
    half = serve([prompt(16)], strategy)[0].nfe // 2
    cut = serve([prompt(16)], strategy, max_nfe=half)[0]
    assert (cut.nfe, cut.completion_reason) == (half, CompletionReason.NFE_LIMIT)
    assert 0 < len(cut.token_ids) < 24
    assert MASK not in cut.token_ids
    with engine("llada2", **{**COMMON, **strategy}) as ready:
        asked = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
        given = ready.add_request(prompt(16), asked)
        for _ in range(4):
            ready.step()
        ready.abort_request(given)
        [left] = ready.generate([prompt(11)], asked)
    assert left.token_ids == serve([prompt(11)], strategy)[0].token_ids


@EACH
def test_an_answer_ends_before_the_first_stop_token_that_is_final(strategy: Mapping[str, Any]) -> None:
    whole = serve([prompt(16)], strategy, max_tokens=32)[0].token_ids
    stop = whole[20]
    cut = serve([prompt(16)], strategy, max_tokens=32, stop_token_ids=(stop,))[0]
    assert cut.completion_reason is CompletionReason.STOP_TOKEN
    assert cut.token_ids == whole[: whole.index(stop)]


@EACH
def test_what_a_stream_shows_as_text_is_never_taken_back(strategy: Mapping[str, Any]) -> None:
    asked = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
    shown = ""
    with engine("llada2", **{**COMMON, **strategy}) as ready:
        texts = [event.text for event in ready.stream([prompt(16)], asked)]
    for text in texts:
        assert text.startswith(shown)
        shown = text
    assert shown


@pytest.mark.parametrize("strategy", [*STRATEGIES.values(), DOUBTING], ids=[*STRATEGIES, "doubting"])
def test_the_events_of_a_stream_tell_every_token_that_was_set_and_only_those(strategy: Mapping[str, Any]) -> None:
    asked = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)
    shown: dict[int, int] = {}
    rewritten = 0
    with engine("llada2", **{**COMMON, **strategy}) as ready:
        for event in ready.stream([prompt(11)], asked):
            canvas = event.canvas
            now = {canvas.start + int(at): int(canvas.tokens[at]) for at in np.flatnonzero(canvas.decided)}
            assert {at for at in now if shown.get(at) != now[at]} == set(event.newly_decided.tolist())
            assert ((event.confidence > 0) & (event.confidence <= 1)).all()
            rewritten += len([at for at in shown if shown[at] != now.get(at)])
            shown, last = now, event.trajectory
    assert last is not None
    assert last.token_ids == tuple(shown[at] for at in range(11, 31))
    assert rewritten > 0


def test_a_stream_shows_the_positions_that_return_to_mask() -> None:
    asked = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)
    returned = list[int]()
    with engine("llada2", **{**COMMON, **DOUBTING}) as ready:
        before: set[int] = set()
        for event in ready.stream([prompt(11)], asked):
            decided = {event.canvas.start + int(at) for at in np.flatnonzero(event.canvas.decided)}
            returned += sorted(before - decided)
            before = decided
    assert returned
    assert len(set(returned)) == len(returned)


@EACH
def test_a_log_probability_is_that_of_the_forward_which_set_the_token_last(strategy: Mapping[str, Any]) -> None:
    [answer] = serve([prompt(16)], strategy, logprobs=1)
    assert answer.logprobs is not None
    for token, told in zip(answer.token_ids, answer.logprobs, strict=True):
        assert told is not None
        assert (told.token_id, told.logprob) == (token, pytest.approx(told.top[0][1]))
        assert told.top[0][0] == token


@pytest.mark.parametrize(
    ("strategy", "key", "value"),
    [(EDIT, "penalty_lambda", float("inf")), (DMAX, "token_merge_weight", 1e30), (DMAX, "token_merge_top_k", 10**9)],
)
def test_numbers_that_would_end_in_nonsense_are_refused_with_their_range(
    strategy: Mapping[str, Any], key: str, value: float
) -> None:
    with pytest.raises(ConfigError, match=rf"{key} .* of at most"):
        engine("llada2", **{**COMMON, **strategy, key: value})


def test_tokens_that_replace_others_are_counted_as_edits() -> None:
    [answer] = serve([prompt(16)], {**EDIT, "save_trace": True})
    assert answer.tokens_written >= 24
    assert answer.tokens_edited > 0
    assert sum(step.num_generated_tokens for step in answer.trajectory) == answer.tokens_written


def test_edit_sampling_is_refused_where_family_or_strategy_cannot() -> None:
    with pytest.raises(Exception, match=r"does not provide edit.*sampling_mode='naive'"):
        engine("llada", sampling_mode="edit")
    with pytest.raises(Exception, match=r"'d2f' has no such mode"):
        engine("llada", decoding_strategy="d2f", sampling_mode="edit")
    with pytest.raises(Exception, match=r"'dmax' requires .*soft_inputs"):
        engine("llada", decoding_strategy="dmax")


def test_dmax_runs_in_edit_mode_whatever_was_asked() -> None:
    with engine("llada2", **{**COMMON, **DMAX}, sampling_mode="naive") as ready:
        assert ready.config.decoding.sampling_mode == "edit"
        assert any("sampling_mode" in warning for warning in ready.config.warnings)


def test_two_processes_blend_as_one() -> None:
    strategy = STRATEGIES["dmax, smooth and exact"]
    [one] = serve([prompt(11)], strategy, max_tokens=9)
    [two] = serve([prompt(11)], strategy, max_tokens=9, settings={"tensor_parallel_size": 2})
    assert two.token_ids == one.token_ids
