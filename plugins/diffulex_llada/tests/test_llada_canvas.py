"""llada_canvas against the published sampler said once more over transformers' Llama, and its own rules."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from diffulex_core.errors import IncompatibleError, InvalidSamplingParams
from diffulex_core.outputs import ReqTrajectory
from diffulex_core.sampling_params import SamplingParams
from diffulex_llada.canvas.rule import LLaDARule, llada_rule
from tests.families.oracle_canvas import llada, network
from tests.integration.engines import EOS, MASK, engine, prompt

# Length, block, steps; blocks that do not divide the length, steps that do not divide by the blocks, too many, too few.
GRID = [(16, 16, 16), (16, 4, 8), (16, 4, 16), (12, 5, 7), (20, 8, 20), (9, 4, 40), (7, 7, 1), (12, 3, 2), (5, 9, 3)]


def params(**settings: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0.0, "ignore_eos": True, "seed": 4, **settings})


def ask(
    prompts: list[list[int]], each: list[SamplingParams], checkpoint: str = "llada", **settings: Any
) -> list[ReqTrajectory]:
    with engine(checkpoint, decoding_strategy="llada_canvas", **settings) as ready:
        return list(ready.generate(prompts, each))


def tokens(answer: ReqTrajectory) -> list[int]:
    return list(answer.token_ids)


@pytest.mark.parametrize("scale", [0.0, 0.7], ids=["plain", "guided"])
@pytest.mark.parametrize("checkpoint", ["llada", "dream"])
def test_answers_and_forwards_are_the_published_samplers(checkpoint: str, scale: float) -> None:
    prompts = [prompt(3 + 5 * index, salt=index) for index in range(len(GRID))]
    each = [
        params(gen_length=length, block_length=block, steps=steps, cfg_scale=scale) for length, block, steps in GRID
    ]
    answers = ask(prompts, each, checkpoint)
    for text, (length, block, steps), answer in zip(prompts, GRID, answers, strict=True):
        expected, forwards = llada(network(checkpoint), text, length, block, steps, scale=scale)
        assert tokens(answer) == expected
        assert answer.nfe == forwards


def test_unset_settings_are_one_block_one_step_for_each_token_and_as_many_as_max_tokens() -> None:
    [answer] = ask([prompt(6)], [params(max_tokens=9)])
    assert tokens(answer) == llada(network("llada"), prompt(6), 9, 9, 9)[0]
    assert answer.nfe == 9


def test_the_engines_keys_are_the_requests_defaults() -> None:
    keys = {"gen_length": 10, "steps": 5, "block_length": 4, "cfg_scale": 0.5}
    by_engine = ask([prompt(6)], [params()], **keys)
    by_request = ask([prompt(6)], [params(**keys)], gen_length=3, cfg_scale=2.0, remasking="random")
    assert tokens(by_engine[0]) == llada(network("llada"), prompt(6), 10, 4, 5, scale=0.5)[0]
    assert tokens(by_request[0]) != tokens(by_engine[0])
    assert tokens(ask([prompt(6)], [params(**keys, remasking="low_confidence")], gen_length=3)[0]) == tokens(
        by_engine[0]
    )


def test_an_end_token_that_is_suppressed_is_never_chosen() -> None:
    free, barred = ask([prompt(7)] * 2, [params(gen_length=12), params(gen_length=12, suppress_eos=True)])
    ended = tokens(free)[3]
    free, barred = ask(
        [prompt(7)] * 2, [params(gen_length=12), params(gen_length=12, suppress_eos=True)], eos_token_ids=[ended]
    )
    assert ended in tokens(free)
    assert ended not in tokens(barred)
    assert tokens(barred) == llada(network("llada"), prompt(7), 12, 12, 12, suppressed=[ended])[0]


def test_positions_that_would_become_an_end_token_come_last_when_deferred() -> None:
    rule = llada_rule(
        length=4, block_length=None, steps=None, random=False, threshold=None, deferred=frozenset({EOS}), seed=0
    )
    at = np.arange(4)
    sure = np.array([0.9, 0.5, 0.99, 0.6])
    chosen = rule.choose(at, at, np.array([3, 4, EOS, 5]), sure)
    assert chosen.tolist() == [True, False, False, False]


def test_a_threshold_does_not_bring_deferred_tokens_forward() -> None:
    rule = llada_rule(
        length=3, block_length=None, steps=None, random=False, threshold=0.9, deferred=frozenset({EOS}), seed=0
    )
    at, sure = np.arange(3), np.array([0.5, 0.99, 0.2])
    assert rule.choose(at, at, np.array([3, EOS, 5]), sure).tolist() == [True, False, False]


def test_a_random_order_that_defers_end_tokens_asks_for_all_masks_to_know_them() -> None:
    rule = llada_rule(
        length=4, block_length=None, steps=None, random=True, threshold=None, deferred=frozenset({EOS}), seed=0
    )
    at = np.arange(4)
    assert rule.ask(at).tolist() == at.tolist()
    assert rule.choose(at, at, np.array([EOS, EOS, 3, EOS]), np.ones(4)).tolist() == [False, False, True, False]


@pytest.mark.parametrize("settings", [{}, {"block_length": 5}], ids=["one block", "blocks"])
def test_every_end_token_is_deferred_or_suppressed(settings: dict[str, int]) -> None:
    net, block = network("llada"), settings.get("block_length", 14)
    free, _ = llada(net, prompt(7), 14, block, 7)
    ends = sorted({free[1], free[5], free[11]})
    asked = {"gen_length": 14, "steps": 7, **settings}
    deferred, barred = ask(
        [prompt(7)] * 2,
        [params(**asked, defer_eos=True), params(**asked, suppress_eos=True)],
        eos_token_ids=ends,
    )
    assert tokens(deferred) == llada(net, prompt(7), 14, block, 7, deferred=ends)[0] != free
    assert tokens(barred) == llada(net, prompt(7), 14, block, 7, suppressed=ends)[0]
    assert not set(tokens(barred)) & set(ends)


def test_random_order_asks_only_for_what_it_decides_and_depends_on_the_seed() -> None:
    with engine(decoding_strategy="llada_canvas") as ready:
        settings = {"gen_length": 24, "steps": 6, "remasking": "random"}
        one, other = (ready.generate(prompt(5), params(**settings, seed=seed)) for seed in (1, 2))
        again = ready.generate([prompt(9), prompt(5)], [params(gen_length=3), params(**settings, seed=1)])
    assert one.head_rows == 24
    assert tokens(one[0]) != tokens(other[0])
    assert tokens(again[1]) == tokens(one[0])


@pytest.mark.parametrize("threshold", [0.2, 0.6, 0.95])
def test_a_threshold_decides_all_that_reach_it_and_never_fewer_than_one(threshold: float) -> None:
    [answer] = ask(
        [prompt(8)],
        [
            params(
                gen_length=20, block_length=10, alg="confidence_threshold", thresholds={"accept_threshold": threshold}
            )
        ],
    )
    net, x, forwards = network("llada"), [*prompt(8), *[MASK] * 20], 0
    while MASK in x:
        begin = 8 + (x.index(MASK) - 8) // 10 * 10
        logits = net(x)
        logits[:, MASK] = -math.inf
        sure = logits.softmax(-1).max(-1)
        masks = [at for at in range(begin, begin + 10) if x[at] == MASK]
        best = max(masks, key=lambda at: float(sure.values[at]))
        for at in masks:
            if at == best or sure.values[at] >= threshold:
                x[at] = int(sure.indices[at])
        forwards += 1
    assert tokens(answer) == x[8:]
    assert answer.nfe == forwards


def test_lower_thresholds_take_fewer_forwards() -> None:
    nfe = [
        ask([prompt(8)], [params(gen_length=20, alg="confidence_threshold")], accept_threshold=threshold)[0].nfe
        for threshold in (0.1, 0.5, 0.9)
    ]
    assert nfe == sorted(nfe)
    assert nfe[0] < nfe[-1]


def test_drawn_tokens_keep_their_confidence_before_temperature() -> None:
    rule = llada_rule(length=4, block_length=2, steps=None, random=False, threshold=None, deferred=frozenset(), seed=0)
    assert rule.clean
    assert rule.measure == "prob"
    with (
        engine(decoding_strategy="llada_canvas") as ready,
        ready.stream(prompt(5), params(gen_length=6, steps=2, temperature=2.0)) as generation,
    ):
        events = list(generation)
    x = [*prompt(5), *[MASK] * 6]
    for event in events:
        logits = network("llada")(x)
        logits[:, MASK] = -math.inf
        clean = logits.softmax(-1)
        for at, confidence in zip(event.newly_decided.tolist(), event.confidence.tolist(), strict=True):
            x[at] = int(event.canvas.tokens[at - 5])
            assert confidence == pytest.approx(float(clean[at, x[at]]), abs=1e-5)
    assert MASK not in x


def test_a_block_that_is_full_early_costs_no_further_steps() -> None:
    rule = LLaDARule(block_length=4, steps=(8, 2), length=8)
    masks = np.arange(8)
    for left in (4, 3, 2, 1):
        assert len(rule.ask(masks)) == left
        chosen = rule.choose(masks, rule.ask(masks), np.zeros(left, dtype=np.int64), np.ones(left))
        masks = np.setdiff1d(masks, rule.ask(masks)[chosen])
    assert rule.ask(masks).tolist() == [4, 5, 6, 7]
    assert rule.choose(masks, masks, np.zeros(4, dtype=np.int64), np.ones(4)).sum() == 2


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"alg": "origin"}, ["alg", "quota"]),
        ({"eps": 0.1, "alg_temp": 0.2}, ["alg_temp, eps", "block_length"]),
        ({"alg": "confidence_threshold", "remasking": "random"}, ["random order"]),
    ],
    ids=["algorithm", "keys", "contradiction"],
)
def test_what_the_strategy_does_not_have_is_refused(settings: dict[str, Any], words: list[str]) -> None:
    with engine(decoding_strategy="llada_canvas") as ready, pytest.raises(InvalidSamplingParams) as error:
        ready.generate(prompt(4), params(**settings))
    assert [word for word in words if word not in str(error.value)] == []


def test_families_without_full_attention_are_refused() -> None:
    with pytest.raises(IncompatibleError, match="full_attention"):
        engine("llada2", decoding_strategy="llada_canvas")
