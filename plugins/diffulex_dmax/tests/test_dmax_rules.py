"""The leftmost rule and the merge descriptors by themselves, and what discovery costs."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, strategies as st

from diffulex_core.pattern import BlockCausal
from diffulex_core.req_context import ReqContext
from diffulex_core.sampling_params import DecodingThresholds, SamplingParams
from diffulex_core.types import Alternatives
from diffulex_dmax import plugin
from diffulex_dmax.leftmost import judge
from diffulex_dmax.merging import MergeRule, Merges
from diffulex_dmax.options import DMaxOptions
from diffulex_dmax.request import dmax_request

MASK = 99


@given(
    rows=st.lists(
        st.tuples(st.integers(0, 3), st.booleans(), st.integers(0, 3), st.sampled_from([0.0, 0.4, 0.6, 0.95, 1.0])),
        min_size=1,
        max_size=8,
    ),
    accept=st.sampled_from([0.0, 0.4, 0.6, 1.0]),
    confident=st.sampled_from([0.0, 0.6, 1.0]),
    exact=st.booleans(),
)
def test_a_step_fills_a_leftmost_run_of_at_least_one_mask_and_refreshes_all_tokens(
    rows: list[tuple[int, bool, int, float]], accept: float, confident: float, exact: bool
) -> None:
    tokens, decided, proposed, confidence = (np.array(column) for column in zip(*rows, strict=True))
    verdict = judge(
        tokens=tokens[None],
        decided=decided[None],
        proposed=proposed[None],
        confidence=confidence[None],
        accept=accept,
        confident=confident,
        exact=exact,
    )
    [write], [settled], [stability] = verdict.write, verdict.settled, verdict.stability
    masks = [at for at, each in enumerate(decided) if not each]
    filled = [at for at in masks if write[at]]
    assert filled == masks[: len(filled)]
    assert bool(filled) == bool(masks)
    assert all(confidence[at] >= accept for at in filled[1:])
    if masks[len(filled) :]:
        assert confidence[masks[len(filled)]] < accept or confidence[masks[0]] < accept
    assert write[decided].all()
    kept = [tokens[at] == proposed[at] for at in range(len(rows)) if decided[at]]
    assert stability == pytest.approx(sum(kept) / len(kept) if kept else 1.0)
    sure = [confidence[at] if exact or not decided[at] else 1.0 for at in range(len(rows))]
    assert settled == ((not masks and all(kept)) or min(sure) >= confident)


def replaced(options: DMaxOptions, confidence: list[float]) -> Merges:
    """Descriptors of block 1 of width 4, whose positions 5, 6 and 7 hold tokens 1, 2 and none."""
    rule = MergeRule.of(options, mask_token_id=MASK, vocab_size=None)
    described = rule.describe(
        np.array([1, 2, MASK]),
        np.array(confidence),
        np.array([True, True, False]),
        Alternatives(
            tokens=np.array([[1, 4], [5, 6], [7, 8]]),
            probabilities=np.array([[0.75, 0.125], [0.5, 0.25], [0.5, 0.25]]),
        ),
    )
    merges = Merges(rule)
    if described is not None:
        merges.put(5, described.merged, described.ids, described.weights)
    return merges


def test_the_mask_takes_what_the_token_leaves_and_certain_tokens_are_fed_plainly() -> None:
    blends = replaced(DMaxOptions(), [0.75, 1.0, 0.5]).between(4, 8)
    assert blends is not None
    assert blends.positions.tolist() == [5]
    assert blends.ids.tolist() == [[1, MASK]]
    assert blends.weights.tolist() == [[0.75, 0.25]]
    assert blends.match_norm


def test_more_tokens_are_the_most_probable_ones_besides_the_chosen_one() -> None:
    blends = replaced(DMaxOptions(token_merge_top_k=2), [0.75, 0.25, 0.5]).between(4, 8)
    assert blends is not None
    assert blends.ids.tolist() == [[1, 4, MASK], [2, 5, MASK]]
    assert blends.weights.tolist() == [[0.75, 0.125, 0.125], [0.25, 0.5, 0.25]]


def test_a_token_is_merged_once_where_fewer_tokens_are_possible_than_are_merged() -> None:
    rule = MergeRule.of(DMaxOptions(token_merge_top_k=4), mask_token_id=MASK, vocab_size=100)
    assert rule.alternatives == 4
    described = rule.describe(
        np.array([98]),
        np.array([0.75]),
        np.array([True]),
        Alternatives(
            tokens=np.array([[98, 4, 98, 98]]), probabilities=np.array([[0.75, 0.25, 0.0, 0.0]], dtype=np.float32)
        ),
    )
    assert described is not None
    merges = Merges(rule)
    merges.put(0, described.merged, described.ids, described.weights)
    blends = merges.between(0, 4)
    assert blends is not None
    shares = {token: blends.weights[blends.ids == token].sum() for token in (98, 4, MASK)}
    assert shares == {98: 0.75, 4: 0.25, MASK: 0.0}


def test_no_more_tokens_are_merged_than_there_are() -> None:
    request = dmax_request(
        request_id=0,
        prompt=np.array([1, 2, 3]),
        params=SamplingParams(),
        context=ReqContext(
            pattern=BlockCausal(block_size=4),
            buffer_size=2,
            mask_token_id=MASK,
            eos_token_ids=frozenset(),
            max_model_len=64,
            thresholds=DecodingThresholds(),
            options=DMaxOptions(token_merge_top_k=200),
            vocab_size=100,
        ),
    )
    span = request.plan(0, None)
    assert span is not None
    assert [group.alternatives for group in span.groups] == [100, 100]


@pytest.mark.parametrize("exact", [False, True])
def test_a_confidence_that_is_a_hair_below_its_threshold_stops_the_run(exact: bool) -> None:
    below = np.float32(0.9)
    assert float(below) < 0.9
    verdict = judge(
        tokens=np.array([[MASK, MASK]]),
        decided=np.array([[False, False]]),
        proposed=np.array([[1, 2]]),
        confidence=np.array([[1.0, below]], dtype=np.float32),
        accept=0.9,
        confident=0.9,
        exact=exact,
    )
    assert verdict.write.tolist() == [[True, False]]
    assert not verdict.settled.any()


def test_smoothing_adds_to_the_tokens_own_embedding() -> None:
    options = DMaxOptions(token_merge_mode="iter_smooth_topk", token_merge_top_k=2, token_merge_weight=2.0)
    blends = replaced(options, [1.0, 1.0, 0.5]).between(4, 8)
    assert blends is not None
    assert blends.ids.tolist() == [[1, 1, 4], [2, 5, 6]]
    assert blends.weights.tolist() == [[1.0, 1.5, 0.25], [1.0, 1.0, 0.5]]
    assert not blends.match_norm


def test_descriptors_are_found_by_position_until_the_request_ends() -> None:
    merges = replaced(DMaxOptions(), [0.75, 0.5, 0.5])
    assert merges.between(0, 4) is None
    assert merges.between(8, 12) is None
    inside = merges.between(6, 16)
    assert inside is not None
    assert inside.positions.tolist() == [6]
    before = merges.between(4, 6)
    assert before is not None
    assert before.positions.tolist() == [5]


@pytest.mark.parametrize(
    ("given", "exact"),
    [
        ({}, False),
        ({"dmax_sampler_fast_path": False}, True),
        ({"exact_confidence": True}, True),
        ({"exact_confidence": True, "dmax_sampler_fast_path": True}, True),
        ({"exact_confidence": False, "dmax_sampler_fast_path": False}, False),
    ],
)
def test_exact_confidence_wins_over_its_older_name(given: dict[str, bool], exact: bool) -> None:
    assert DMaxOptions(**given).exact is exact


def test_at_weight_0_nothing_is_kept() -> None:
    assert replaced(DMaxOptions(token_merge_weight=0.0), [0.5, 0.5, 0.5]).between(0, 8) is None


def test_the_plugin_imports_no_torch() -> None:
    code = f"import sys; sys.path[:] = {sys.path!r}; import {plugin.__name__}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
