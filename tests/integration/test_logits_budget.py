"""A bound on the rows of logits changes no answer, whatever the strategy."""

from __future__ import annotations

from typing import Any

import pytest

from diffulex_core.sampling_params import SamplingParams
from tests.integration.engines import engine, prompt

PROMPTS = [prompt(5), prompt(17, salt=1), prompt(30, salt=2)]


@pytest.mark.parametrize(
    ("checkpoint", "settings"),
    [
        ("llada", {"decoding_strategy": "multi_bd"}),
        ("dream", {"decoding_strategy": "d2f"}),
        ("llada2", {"decoding_strategy": "multi_bd", "sampling_mode": "edit", "buffer_size": 2}),
        ("llada2", {"decoding_strategy": "dmax", "buffer_size": 2}),
    ],
    ids=["multi_bd", "shifted", "edit", "dmax"],
)
def test_answers_and_head_rows_are_the_same(checkpoint: str, settings: dict[str, Any]) -> None:
    params = [
        SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True, logprobs=2),
        SamplingParams(temperature=0.8, max_tokens=16, ignore_eos=True, seed=3, top_p=0.9),
        SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True, confidence="margin"),
    ]
    with engine(checkpoint, **settings) as ready:
        whole = ready.generate(PROMPTS, params)
    with engine(checkpoint, **settings, max_logits_tokens=3) as ready:
        parts = ready.generate(PROMPTS, params)
    assert [answer.token_ids for answer in parts] == [answer.token_ids for answer in whole]
    assert [answer.logprobs for answer in parts] == [answer.logprobs for answer in whole]
    assert parts.head_rows == whole.head_rows
