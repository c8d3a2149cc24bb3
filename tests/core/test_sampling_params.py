"""Sampling parameters: every value that cannot be used is refused with its name, and the rest is kept."""

from __future__ import annotations

import math
from typing import Any

import attrs
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from diffulex_core.errors import InvalidSamplingParams
from diffulex_core.sampling_params import DecodingThresholds, SamplingParams
from diffulex_core.sparse import SparseConfig

WHOLE = [0, -1, 1.5, "3", True, math.nan, [4]]
FLAGS = ["no", 1, None, 0.0]
BAD: dict[str, list[Any]] = {
    "temperature": [-0.1, math.nan, math.inf, "1", None, True, 10**400],
    "max_tokens": [*WHOLE, None],
    "max_nfe": WHOLE,
    "max_repetition_run": WHOLE,
    "top_k": WHOLE,
    "top_p": [0, -0.5, 1.01, math.nan, "0.9", None, True],
    "min_p": [-0.01, 1.01, math.nan, "0.1", None],
    "seed": [1.5, "7", True, math.nan],
    "logprobs": [-1, 21, 1.5, "3", True, math.nan, [4]],
    "stop": ["", [""], ["ok", 3], 5, b"ab", [None]],
    "stop_token_ids": [[-1], [1.5], ["3"], "12", 2.5, [True], [None]],
    "confidence": ["entropy", None, "PROB", [], {}],
    "thresholds": [
        {"accept": 0.5},
        {"accept_threshold": 1.1},
        {"accept_threshold": -0.1},
        {"accept_threshold": math.nan},
        {"accept_threshold": "0.5"},
        {"accept_threshold": None},
        {3: 0.5},
        0.5,
        0.0,
        [0.5],
    ],
    "logit_bias": [{-1: 1.0}, {"a": 1.0}, {1: "x"}, {1: math.nan}, {1: math.inf}, {1.5: 1.0}, {True: 1.0}, [1], 2.0, 0],
    "ignore_eos": FLAGS,
    "skip_special_tokens": FLAGS,
    "gen_length": WHOLE,
    "steps": WHOLE,
    "block_length": WHOLE,
    "cfg_scale": [-0.1, math.nan, math.inf, "1", True],
    "remasking": ["best", 1, "", []],
    "suppress_eos": ["no", 1],
    "defer_eos": ["no", 0.0],
    "alg": ["greedy", 3, {}],
    "alg_temp": [-0.1, math.nan, math.inf, "1", True],
    "eps": [0, 1, -0.5, math.nan, "small"],
    "skip_empty_steps": ["no", 0],
    "sparse": [
        True,
        {"retention_ratio": 0},
        {"ratio": 0.5},
        0.5,
        *(
            SparseConfig(**{name: value})
            for name, values in {
                "enabled": [1, "on", None],
                "retention_ratio": [0, -0.1, 1.01, math.nan, "0.5", None, True],
                "delay_step": [-1, 0.5, None, True, 32],
                "default_block_len": [0, 2.5, None, 1],
                "head_select": [1, None],
                "pool_kernel": [0, 2, -1, 1.0, None],
                "refresh_every": [0, 1.5, True],
                "refresh_drift": [0, 1.1, math.nan, "0.5"],
                "force_first": [1, None],
            }.items()
            for value in values
        ),
    ],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in BAD.items() for value in values], ids=str
)
def test_a_value_that_cannot_be_used_is_refused_by_name(name: str, value: Any) -> None:
    threshold = name == "thresholds" and isinstance(value, dict) and "accept_threshold" in value
    with pytest.raises(InvalidSamplingParams, match="accept_threshold" if threshold else name):
        SamplingParams(**{name: value})


def test_every_parameter_has_bad_values_in_this_file() -> None:
    assert set(BAD) == {field.name for field in attrs.fields(SamplingParams)}


def test_a_sparse_cache_may_be_given_as_plain_data() -> None:
    given = {"retention_ratio": 0.25, "delay_step": 2}
    assert SamplingParams(sparse=given).sparse == SparseConfig(**given)
    assert SamplingParams(sparse={}).sparse == SparseConfig()
    assert SamplingParams(sparse={"enabled": False}).sparse == SparseConfig(enabled=False)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(InvalidSamplingParams) as caught:
        SamplingParams(temperature=-1, max_tokens=0, top_p=2, thresholds={"accept_threshold": 3})
    assert all(name in str(caught.value) for name in ("temperature", "max_tokens", "top_p", "accept_threshold"))


def test_an_unknown_threshold_is_answered_with_the_names_that_exist() -> None:
    with pytest.raises(InvalidSamplingParams, match=r"'accept'.*accept_threshold"):
        SamplingParams(thresholds={"accept": 0.5})


@given(
    temperature=st.one_of(st.just(0), st.floats(1e-6, 1e6)),
    max_tokens=st.integers(1, 10**6),
    top_p=st.floats(0, 1, exclude_min=True),
    min_p=st.floats(0, 1),
    top_k=st.none() | st.integers(1, 10**9),
    seed=st.none() | st.integers(-(2**70), 2**70),
    logprobs=st.none() | st.integers(0, 20),
    thresholds=st.dictionaries(
        st.sampled_from([field.name for field in attrs.fields(DecodingThresholds)]), st.floats(0, 1)
    ),
)
@settings(deadline=None)
def test_values_within_their_ranges_are_kept_as_they_are(**given_values: Any) -> None:
    params = SamplingParams(**given_values)
    assert {name: getattr(params, name) for name in given_values} == given_values
    resolved = attrs.asdict(params.resolve_thresholds(DecodingThresholds()))
    assert resolved == {**attrs.asdict(DecodingThresholds()), **given_values["thresholds"]}


def test_a_single_stop_string_is_one_string_and_lists_become_tuples() -> None:
    assert SamplingParams(stop="end").stop == ("end",)
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")
    assert SamplingParams(stop_token_ids=[3, 4]).stop_token_ids == (3, 4)
    assert SamplingParams(stop=None, stop_token_ids=None).stop == ()


def test_numpy_numbers_are_the_numbers_that_they_are() -> None:
    numbers: dict[str, Any] = {"temperature": np.float32(0.5), "max_tokens": np.int64(3), "seed": np.uint8(4)}
    params = SamplingParams(**numbers, stop_token_ids=np.array([1, 2]))
    assert (params.temperature, params.max_tokens, params.stop_token_ids, params.seed) == (0.5, 3, (1, 2), 4)
    assert {type(params.max_tokens), type(params.seed), *map(type, params.stop_token_ids)} == {int}


def test_parameters_are_values() -> None:
    bias = {1: 2.0}
    params = SamplingParams(logit_bias=bias)
    bias[1] = 9.0
    assert params.logit_bias == {1: 2.0}
    assert params == SamplingParams(logit_bias={1: 2.0})
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        params.max_tokens = 3  # type: ignore[misc]


@pytest.mark.parametrize("name", [field.name for field in attrs.fields(DecodingThresholds)])
@pytest.mark.parametrize("value", [-0.01, 1.01, math.nan, "0.5", None])
def test_an_engine_threshold_outside_the_unit_interval_is_a_problem(name: str, value: Any) -> None:
    [problem] = DecodingThresholds(**{name: value}).problems()
    assert name in problem


def test_the_default_thresholds_are_those_of_the_documentation() -> None:
    assert attrs.astuple(DecodingThresholds()) == (0.1, 0.9, 0.9, 0.0, 0.4, 0.0)
    assert DecodingThresholds().problems() == []
