"""Strategies that revise tokens: what streams, records and log probabilities tell of them, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from diffulex_core.errors import ConfigError
from diffulex_core.sampling_params import SamplingParams
from tests.families.revising_serving import COMMON, DMAX, EDIT, serve
from tests.integration.engines import engine, prompt

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


@pytest.mark.parametrize(("weight", "shared"), [(1.0, 16), (0.0, 32)])
def test_pages_of_an_answer_are_shared_where_nothing_was_blended(weight: float, shared: int) -> None:
    asked = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
    with engine("llada2", **{**COMMON, **DMAX, "token_merge_weight": weight}) as ready:
        [answer] = ready.generate([prompt(16)], asked)
        [following] = ready.generate([[*prompt(16), *answer.token_ids]], asked)
    assert following.cached_tokens == shared


def test_two_processes_blend_as_one() -> None:
    strategy = STRATEGIES["dmax, smooth and exact"]
    [one] = serve([prompt(11)], strategy, max_tokens=9)
    [two] = serve([prompt(11)], strategy, max_tokens=9, settings={"tensor_parallel_size": 2})
    assert two.token_ids == one.token_ids
