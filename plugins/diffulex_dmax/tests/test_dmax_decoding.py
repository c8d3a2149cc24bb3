"""dmax against an oracle that decodes whole sequences by the published rules, and what each knob does."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import pytest

from tests.families.oracle_revising import dmax_step
from tests.families.revising_serving import DMAX, check, serve
from tests.integration.engines import prompt

SHORT: dict[str, Any] = {"accept": 0.3, "post_edit": 1, "max_tokens": 16}
"""On random weights the exact path feeds its confidences back until they are chaos: rounding grows tenfold in three
steps, so that two implementations agree on few of them."""

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one block at a time": {"buffer": 1},
    "three blocks": {"buffer": 3, "add_block": 0.5},
    "small blocks": {"block": 4},
    "two tokens": {"top_k": 2},
    "five tokens": {"top_k": 5, "exact": True, **SHORT},
    "own norms": {"norm": False},
    "exact": {"exact": True, **SHORT},
    "exact until agreement": {"exact": True, "confident": 1.0, **SHORT},
    "easily confident": {"exact": True, "confident": 0.2, **SHORT},
    "smooth": {"merge": "iter_smooth_topk"},
    "smooth over three": {"merge": "iter_smooth_topk", "top_k": 3, "weight": 0.5},
    "smooth and exact": {"merge": "iter_smooth_topk", "top_k": 2, "exact": True, "confident": 0.6, **SHORT},
    "whole runs": {"accept": 0.0},
    "one mask at a time": {"accept": 1.0},
    "steady blocks": {"stability": 1.0},
    "heeding the end of text": {"ignore_eos": False, "max_tokens": 60},
    "an end inside a block": {"max_tokens": 19},
}


@pytest.mark.parametrize(("rules", "length"), [*zip(SETTINGS.values(), cycle((16, 11)), strict=False)], ids=SETTINGS)
def test_tokens_and_forwards_are_the_oracles(rules: dict[str, Any], length: int) -> None:
    check(dmax_step, prompt(length), DMAX, **{"merge": "dmax_topk", **rules})


def test_nothing_is_merged_at_weight_0() -> None:
    plain = check(dmax_step, prompt(11), {**DMAX, "token_merge_weight": 0.0})
    assert plain.token_ids != serve([prompt(11)], DMAX)[0].token_ids


@pytest.mark.parametrize(
    ("base", "knob"),
    [
        ({"accept_threshold": 0.1}, {"token_merge_renormalize": False}),
        ({"accept_threshold": 0.1}, {"token_merge_top_k": 8}),
        ({}, {"token_merge_mode": "iter_smooth_topk"}),
        ({"token_merge_mode": "iter_smooth_topk"}, {"token_merge_weight": 3.0}),
        ({"token_merge_mode": "iter_smooth_topk"}, {"token_merge_top_k": 4}),
        ({}, {"dmax_sampler_fast_path": False}),
        ({}, {"exact_confidence": True}),
    ],
    ids=str,
)
def test_each_knob_of_merging_changes_the_answer(base: dict[str, Any], knob: dict[str, Any]) -> None:
    without = serve([prompt(16)], DMAX, max_tokens=40, settings=base)[0]
    assert serve([prompt(16)], DMAX, max_tokens=40, settings={**base, **knob})[0].token_ids != without.token_ids


def test_the_two_names_of_exact_confidence_mean_the_same() -> None:
    one = serve([prompt(16)], DMAX, settings={"exact_confidence": True})[0]
    assert serve([prompt(16)], DMAX, settings={"dmax_sampler_fast_path": False})[0].token_ids == one.token_ids


def test_a_lower_bound_for_confident_blocks_takes_fewer_forwards() -> None:
    exact = {"exact_confidence": True}
    spent = [
        serve([prompt(16)], DMAX, settings={**exact, "confident_commit_threshold": bound})[0].nfe
        for bound in (1.0, 0.3, 0.0)
    ]
    assert spent[0] > spent[1] > spent[2]


def test_blocks_that_never_agree_end_by_their_limit() -> None:
    exact = {"exact_confidence": True, "confident_commit_threshold": 1.0}
    spent = [serve([prompt(16)], DMAX, settings={**exact, "max_post_edit_steps": most})[0].nfe for most in (12, 3, 0)]
    assert spent[0] > spent[1] > spent[2]


@pytest.mark.parametrize("other", ["margin", "neg_entropy"])
def test_confidence_is_the_probability_whatever_the_request_names(other: str) -> None:
    settings = {"exact_confidence": True, "max_post_edit_steps": 3}
    own = serve([prompt(16)], DMAX, settings=settings)[0]
    named = serve([prompt(16)], DMAX, settings=settings, confidence=other)[0]
    assert (named.token_ids, named.nfe) == (own.token_ids, own.nfe)


def test_a_request_that_is_hardly_tempered_is_decided_as_a_greedy_one() -> None:
    greedy = serve([prompt(16)], DMAX)[0]
    tempered = serve([prompt(16)], DMAX, temperature=1e-4, top_k=1, seed=1)[0]
    assert (tempered.token_ids, tempered.nfe) == (greedy.token_ids, greedy.nfe)


def test_a_lower_accept_threshold_fills_longer_runs() -> None:
    spent = [serve([prompt(16)], DMAX, settings={"accept_threshold": bound})[0].nfe for bound in (0.9, 0.3, 0.0)]
    assert spent[0] > spent[1] > spent[2]
