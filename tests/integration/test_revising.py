"""Strategies that revise tokens: what schedule, pages and neighbours must not change, and what ends an answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

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
