"""Canvases on several ranks and several replicas: what one process gives, guidance, sparse caches and all."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from diffulex_core.engine import Diffulex
from diffulex_core.host import Host
from diffulex_core.sampling_params import SamplingParams
from tests.core.thread_executor import threaded_host
from tests.integration.engines import PARITY, SETTINGS, prompt
from tests.integration.test_canvas import eight, params

WAYS: dict[str, dict[str, int]] = {
    "two ranks": {"tensor_parallel_size": 2},
    "two replicas": {"data_parallel_size": 2},
    "two replicas of two ranks": {"tensor_parallel_size": 2, "data_parallel_size": 2},
}
EACH = pytest.mark.parametrize(
    ("strategy", "checkpoint"), [("llada_canvas", "llada"), ("dream_canvas", "dream"), ("llada_canvas", "dream")]
)
EACH_WAY = pytest.mark.parametrize("way", WAYS)
PROMPTS = [prompt(2 + 3 * index, salt=index) for index in range(8)]
Given = tuple[list[tuple[int, ...]], list[int], list[float]]
"""Tokens, forwards and log-likelihoods."""


@cache
def host() -> Host:
    return threaded_host()


def open_engine(strategy: str, checkpoint: str, **settings: Any) -> Diffulex:
    given = {**SETTINGS, "decoding_strategy": strategy, "device": "cpu", **settings}
    return Diffulex(PARITY / "checkpoints" / checkpoint, host=host(), **given)


def ask_all(strategy: str) -> list[SamplingParams]:
    """Everything that a canvas may be asked for, and both kinds of sparse caches."""
    sparse = [
        params(gen_length=18, steps=12, sparse={"head_select": each, "retention_ratio": 0.5, "delay_step": 0}, **more)
        for each, more in ((False, {}), (True, {"cfg_scale": 1.0}))
    ]
    return [*eight(strategy)[:6], *sparse]


@pytest.fixture(scope="module")
def wanted() -> dict[tuple[str, str], Given]:
    """What one process gives."""
    found = {}
    for strategy, checkpoint in (("llada_canvas", "llada"), ("dream_canvas", "dream"), ("llada_canvas", "dream")):
        with open_engine(strategy, checkpoint) as one:
            found[strategy, checkpoint] = given(one, strategy)
    return found


def given(ready: Diffulex, strategy: str) -> Given:
    answers = list(ready.generate(PROMPTS, ask_all(strategy)))
    pairs = [(PROMPTS[at], PROMPTS[at + 1]) for at in range(4)]
    values = ready.log_likelihood(pairs, mc_num=5, cfg_scale=0.5)
    return [answer.token_ids for answer in answers], [answer.nfe for answer in answers], values


@EACH_WAY
@EACH
def test_tokens_forwards_and_likelihoods_are_those_of_one_process(
    wanted: dict[tuple[str, str], Given],
    strategy: str,
    checkpoint: str,
    way: str,
) -> None:
    tokens, forwards, values = wanted[strategy, checkpoint]
    assert len(set(tokens)) == len(PROMPTS)
    with open_engine(strategy, checkpoint, executor="threads", **WAYS[way]) as several:
        found = given(several, strategy)
        several._open.scheduler.check_integrity()
    assert found[0] == tokens
    assert found[1] == forwards
    assert found[2] == pytest.approx(values, rel=1e-5)


@EACH
def test_two_replicas_with_few_pages_give_the_same(
    wanted: dict[tuple[str, str], Given], strategy: str, checkpoint: str
) -> None:
    tokens, _, values = wanted[strategy, checkpoint]
    with open_engine(strategy, checkpoint, executor="threads", data_parallel_size=2, num_pages=8) as several:
        found = given(several, strategy)
    assert found[0] == tokens
    assert found[2] == pytest.approx(values, rel=1e-5)
