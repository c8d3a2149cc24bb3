"""Log probabilities of answers, through engines and every kind of strategy that tells them."""

from __future__ import annotations

import math
from typing import Any

import attrs
import pytest

from diffulex_core.admission import check_logprobs
from diffulex_core.errors import InvalidSamplingParams
from diffulex_core.outputs import GenerationOutputs
from diffulex_core.sampling_params import SamplingParams
from tests.integration.engines import engine, host, prompt

PROMPTS = [prompt(9), prompt(16, salt=1), prompt(21, salt=2)]


def params(**changes: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0.0, "max_tokens": 24, "ignore_eos": True, "logprobs": 3, **changes})


@pytest.mark.parametrize("strategy", ["multi_bd", "d2f"])
def test_each_token_is_told_with_the_confidence_that_decided_it(strategy: str) -> None:
    with engine(decoding_strategy=strategy) as ready:
        decided: dict[tuple[int, int], float] = {}
        with ready.stream(PROMPTS, params()) as generation:
            for event in generation:
                pairs = zip(event.newly_decided.tolist(), event.confidence.tolist(), strict=True)
                decided |= {(event.index, position): confidence for position, confidence in pairs}
        for index, answer in enumerate(generation.outputs):
            assert answer.logprobs is not None
            assert len(answer.logprobs) == len(answer.token_ids) == 24
            for at, told in enumerate(answer.logprobs):
                assert told is not None
                assert told.token_id == answer.token_ids[at]
                confidence = decided[index, len(PROMPTS[index]) + at]
                assert math.exp(told.logprob) == pytest.approx(confidence, rel=1e-5)
                assert told.top[0] == (told.token_id, told.logprob)
                assert len(told.top) == 3
                assert [logprob for _, logprob in told.top] == sorted((each[1] for each in told.top), reverse=True)


def test_requests_get_what_each_of_them_asks_for_and_the_answers_do_not_change() -> None:
    asked = [params(logprobs=None), params(logprobs=0), params(logprobs=5)]
    with engine() as ready:
        none, chosen, five = ready.generate(PROMPTS, asked)
        plain = ready.generate(PROMPTS, params(logprobs=None))
    assert [each.token_ids for each in (none, chosen, five)] == [each.token_ids for each in plain]
    assert none.logprobs is None
    assert chosen.logprobs is not None
    assert {len(told.top) for told in chosen.logprobs if told is not None} == {0}
    assert five.logprobs is not None
    assert {len(told.top) for told in five.logprobs if told is not None} == {5}


def test_edited_tokens_are_told_as_they_were_decided_last() -> None:
    settings = {"sampling_mode": "edit", "buffer_size": 2, "decoding_strategy": "multi_bd", "edit_threshold": 0.0}
    with engine("llada2", **settings) as ready:
        answers = ready.generate(PROMPTS, params())
    assert sum(answer.tokens_edited for answer in answers) > 0
    for answer in answers:
        assert answer.logprobs is not None
        assert [told and told.token_id for told in answer.logprobs] == list(answer.token_ids)


@pytest.mark.parametrize(
    ("checkpoint", "settings"),
    [
        ("llada", {"decoding_strategy": "llada_canvas"}),
        ("dream", {"decoding_strategy": "dream_canvas"}),
        ("llada2", {"decoding_strategy": "dmax", "sampling_mode": "edit"}),
    ],
    ids=["llada_canvas", "dream_canvas", "dmax"],
)
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_strategies_with_rules_of_their_own_tell_every_token(
    checkpoint: str, settings: dict[str, Any], temperature: float
) -> None:
    with engine(checkpoint, **settings) as ready:
        answers = ready.generate(PROMPTS, params(temperature=temperature, seed=2))
    for answer in answers:
        assert answer.logprobs is not None
        assert [told and told.token_id for told in answer.logprobs] == list(answer.token_ids)
        assert all(told is not None and told.logprob <= told.top[0][1] for told in answer.logprobs)


def test_an_answer_that_a_stop_string_cut_is_told_up_to_there() -> None:
    with engine() as ready:
        [whole] = ready.generate(PROMPTS[0], params())
        stop = ready.tokenizer.decode(whole.token_ids[6:9])
        [cut] = ready.generate(PROMPTS[0], params(stop=stop))
    assert cut.logprobs is not None
    assert whole.logprobs is not None
    assert len(cut.logprobs) == len(cut.token_ids) < 24
    assert cut.logprobs == whole.logprobs[: len(cut.logprobs)]


def test_a_preempted_answer_is_told_in_full() -> None:
    with engine(num_pages=5, max_model_len=72) as small:
        answers = small.generate(PROMPTS, params(max_tokens=40))
    assert sum(answer.preemptions for answer in answers) > 0
    assert all(answer.logprobs is not None and None not in answer.logprobs for answer in answers)


def test_they_survive_json() -> None:
    with engine() as ready:
        outputs = ready.generate(PROMPTS[:1], params(max_tokens=4))
    assert GenerationOutputs.from_json(outputs.to_json()) == outputs


def test_a_strategy_that_cannot_tell_them_refuses_to() -> None:
    strategy = host().strategies.get("multi_bd")
    check_logprobs(params(), strategy)
    silent = attrs.evolve(strategy, logprobs=False)
    check_logprobs(params(logprobs=None), silent)
    with pytest.raises(InvalidSamplingParams, match=r"'multi_bd' reports no log probabilities. Leave logprobs out"):
        check_logprobs(params(), silent)
    with engine() as ready:
        ready.config = attrs.evolve(ready.config, strategy=silent)
        with pytest.raises(InvalidSamplingParams, match="reports no log probabilities"):
            ready.add_request(PROMPTS[0], params())
        assert ready.is_finished()


def test_only_tokens_that_are_possible_are_told() -> None:
    allowed = (40, 77)
    with engine() as ready:
        others = {token: -math.inf for token in range(len(ready.tokenizer)) if token not in allowed}
        [answer] = ready.generate(PROMPTS[0], params(logprobs=5, logit_bias=others, max_tokens=6))
    assert answer.logprobs is not None
    for told in answer.logprobs:
        assert told is not None
        assert sorted(token for token, _ in told.top) == sorted(allowed)
        assert sum(math.exp(logprob) for _, logprob in told.top) == pytest.approx(1.0, abs=1e-5)
