"""dream_canvas against the published samplers said once more over transformers' Qwen2, and its own rules."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from diffulex_core.canvas.schedule import decided_share, time_grid
from diffulex_core.errors import InvalidSamplingParams
from diffulex_core.outputs import ReqTrajectory
from diffulex_core.sampling.rng import uniform
from diffulex_core.sampling_params import SamplingParams
from diffulex_dream.canvas.rule import DreamRule
from tests.families.oracle_canvas import dream, network
from tests.integration.engines import EOS, MASK, engine, prompt

ALGORITHMS = ("maskgit_plus", "topk_margin", "entropy")
# Length, steps, what limits or guides the tokens.
GRID: list[tuple[int, int, dict[str, Any]]] = [
    (16, 16, {}),
    (16, 5, {"eps": 0.05}),
    (11, 30, {}),
    (12, 1, {}),
    (20, 8, {"top_p": 0.8}),
    (14, 7, {"top_k": 5}),
    (12, 6, {"top_p": 0.7, "top_k": 9}),
]


def params(**settings: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0.0, "ignore_eos": True, "seed": 4, **settings})


def ask(prompts: list[list[int]], each: list[SamplingParams], **settings: Any) -> list[ReqTrajectory]:
    with engine("dream", decoding_strategy="dream_canvas", **settings) as ready:
        return list(ready.generate(prompts, each))


def tokens(answer: ReqTrajectory) -> list[int]:
    return list(answer.token_ids)


@pytest.mark.parametrize("scale", [0.0, 1.2], ids=["plain", "guided"])
@pytest.mark.parametrize("alg", ALGORITHMS)
def test_answers_and_counts_are_the_published_samplers(alg: str, scale: float) -> None:
    prompts = [prompt(2 + 4 * index, salt=index) for index in range(len(GRID))]
    each = [params(gen_length=length, steps=steps, alg=alg, cfg_scale=scale, **more) for length, steps, more in GRID]
    answers = ask(prompts, each)
    for text, (length, steps, more), answer in zip(prompts, GRID, answers, strict=True):
        expected, counts = dream(network("dream"), text, length, steps, alg=alg, scale=scale, **more)
        assert tokens(answer) == expected
        assert [step.num_generated_tokens for step in answer.trajectory] == [count for count in counts if count]


def test_steps_that_decide_nothing_are_forwards_of_their_own_when_not_left_out() -> None:
    settings = {"gen_length": 10, "steps": 24, "alg": "entropy"}
    left_out, taken = ask([prompt(6)] * 2, [params(**settings), params(**settings, skip_empty_steps=False)])
    _, counts = dream(network("dream"), prompt(6), 10, 24, alg="entropy")
    assert tokens(taken) == tokens(left_out)
    assert [step.num_generated_tokens for step in taken.trajectory] == counts
    assert left_out.nfe == sum(count > 0 for count in counts) < taken.nfe


@pytest.mark.parametrize("steps", [1, 2, 7, 90, 400])
@pytest.mark.parametrize("alg", ["origin", "maskgit_plus"])
def test_steps_left_out_are_those_that_decide_nothing(alg: str, steps: int) -> None:
    grid, nothing = time_grid(steps, 1e-3), np.zeros(0, dtype=np.int64)
    for masks in (1, 2, 5):
        left = np.arange(masks)
        skipping, walking = (
            DreamRule(alg=alg, grid=grid, prompt_len=3, length=masks, seed=masks, skip_empty=skip)
            for skip in (True, False)
        )
        while len(left):
            while len(walking.ask(left)) == 0:
                walking.choose(left, nothing, nothing, np.zeros(0))
            asked = walking.ask(left)
            assert skipping.ask(left).tolist() == asked.tolist()
            tokens, sure = np.zeros_like(asked), np.linspace(0.9, 0.1, len(asked))
            chosen = walking.choose(left, asked, tokens, sure)
            assert skipping.choose(left, asked, tokens, sure).tolist() == chosen.tolist()
            left = np.setdiff1d(left, asked[chosen])


def test_a_grid_of_very_many_steps_is_not_walked_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(*given: Any) -> Any:
        calls.append(given)
        return uniform(*given)

    monkeypatch.setattr("diffulex_core.canvas.choice.uniform", counted)
    rule = DreamRule(alg="origin", grid=time_grid(1 << 20, 1e-3), prompt_len=1, length=1)
    assert rule.ask(np.arange(1)).tolist() == [0]
    assert len(calls) < 100


def test_origin_decides_each_mask_with_the_share_of_the_step() -> None:
    masks, steps = 4000, 4
    grid, left = time_grid(steps, 1e-3), np.arange(masks)
    rule = DreamRule(alg="origin", grid=grid, prompt_len=0, length=masks, seed=9)
    for step in range(steps):
        due = rule.ask(left)
        expected = len(left) * float(decided_share(grid, step))
        assert len(due) == pytest.approx(expected, abs=5 * np.sqrt(masks) / 2)
        assert rule.choose(left, due, np.zeros_like(due), np.ones(len(due))).all()
        left = np.setdiff1d(left, due)
    assert len(left) == 0


def test_origin_needs_only_the_rows_that_it_decides_and_depends_on_the_seed() -> None:
    with engine("dream", decoding_strategy="dream_canvas") as ready:
        one, other = (ready.generate(prompt(5), params(gen_length=20, steps=6, seed=seed)) for seed in (1, 2))
    assert one.head_rows == 20
    assert tokens(one[0]) != tokens(other[0])
    assert one[0].nfe <= 6


def test_a_tempered_choice_of_positions_differs_from_the_best_and_by_seed() -> None:
    settings = {"gen_length": 16, "steps": 8, "alg": "maskgit_plus"}
    best, cold, warm, other = ask(
        [prompt(6)] * 4,
        [
            params(**settings),
            params(**settings, alg_temp=1e-6),
            params(**settings, alg_temp=5.0),
            params(**settings, alg_temp=5.0, seed=5),
        ],
    )
    assert tokens(cold) == tokens(best)
    assert len({answer.token_ids for answer in (best, warm, other)}) == 3


def test_the_engines_keys_are_the_requests_defaults() -> None:
    keys = {"gen_length": 10, "steps": 5, "alg": "entropy", "eps": 0.01}
    [answer] = ask([prompt(6)], [params()], **keys)
    assert tokens(answer) == dream(network("dream"), prompt(6), 10, 5, alg="entropy", eps=0.01)[0]


def test_uncertain_positions_are_due_again_until_they_are_decided() -> None:
    rule = DreamRule(alg="confidence_threshold", grid=time_grid(2, 1e-3), prompt_len=1, length=4, threshold=0.9)
    at, token = np.arange(4), np.zeros(4, dtype=np.int64)
    assert rule.ask(at).tolist() == [0, 1, 2, 3]
    sure = np.array([0.95, 0.99, 0.2, 0.1], dtype=np.float32)
    first = rule.choose(at, at, token, sure)
    assert first.tolist() == [False, True, False, False]  # one was due
    rest = np.array([0, 2, 3])
    second = rule.choose(rest, rest, token[:3], np.array([0.5, 0.95, 0.95], dtype=np.float32))
    assert second.tolist() == [False, True, True]
    assert rule.ask(np.array([0])).tolist() == [0]
    assert rule.choose(np.array([0]), np.array([0]), token[:1], np.array([0.1], dtype=np.float32)).all()


def test_positions_that_were_due_and_too_uncertain_are_due_with_the_next_ones() -> None:
    rule = DreamRule(alg="confidence_threshold", grid=time_grid(4, 1e-3), prompt_len=1, length=16, threshold=0.9)
    at = np.arange(16)
    sure = np.where(at == 5, 0.95, 0.5).astype(np.float32)
    assert rule.choose(at, at, at, sure).sum() == 1  # of three that are due
    rest = np.setdiff1d(at, [5])
    assert rule.choose(rest, rest, rest, np.full(15, 0.95, dtype=np.float32)).sum() == 4 + 2


def test_the_confidence_of_entropy_is_its_negative_so_that_a_tempered_choice_weighs_it_as_published() -> None:
    with engine("dream", decoding_strategy="dream_canvas") as ready:
        asked = params(gen_length=5, steps=1, alg="entropy")
        with ready.stream(prompt(6), asked) as generation:
            [event] = list(generation)
    logits = network("dream")([*prompt(6), *[MASK] * 5])[6:]
    logits[:, MASK] = -torch.inf
    likely = logits.double().softmax(-1)
    expected = (likely * (likely + 1e-10).log()).sum(-1)
    assert event.newly_decided.tolist() == [6, 7, 8, 9, 10]
    assert event.confidence.tolist() == pytest.approx(expected.tolist(), abs=1e-4)
    assert expected.min() < -1


def test_a_threshold_does_not_bring_deferred_tokens_forward() -> None:
    rule = DreamRule(
        alg="confidence_threshold",
        grid=time_grid(1, 1e-3),
        prompt_len=1,
        length=3,
        threshold=0.9,
        deferred=frozenset({EOS}),
    )
    at, sure = np.arange(3), np.array([0.5, 0.99, 0.2], dtype=np.float32)
    assert rule.choose(at, at, np.array([3, EOS, 5]), sure).tolist() == [True, False, False]


def test_a_confidence_of_exactly_the_threshold_is_enough() -> None:
    rule = DreamRule(alg="confidence_threshold", grid=time_grid(1, 1e-3), prompt_len=1, length=3, threshold=0.5)
    at = np.arange(3)
    chosen = rule.choose(at, at, at, np.array([0.75, 0.5, 0.499], dtype=np.float32))
    assert chosen.tolist() == [True, True, False]


def test_thresholds_decide_how_many_forwards_an_answer_takes() -> None:
    nfe = [
        ask(
            [prompt(8)],
            [params(gen_length=20, steps=4, alg="confidence_threshold")],
            accept_threshold=threshold,
        )[0].nfe
        for threshold in (0.0, 0.6, 1.0)
    ]
    assert nfe[0] <= 4
    assert nfe == sorted(nfe)
    assert nfe[-1] > nfe[0]


def test_positions_that_would_become_an_end_token_come_last_when_deferred() -> None:
    rule = DreamRule(alg="maskgit_plus", grid=time_grid(2, 1e-3), prompt_len=2, length=4, deferred=frozenset({EOS}))
    at = np.arange(4)
    chosen = rule.choose(at, at, np.array([3, EOS, 5, EOS]), np.array([0.1, 0.9, 0.2, 0.8], dtype=np.float32))
    assert chosen.tolist() == [False, False, True, False]


def test_origin_leaves_positions_that_would_become_an_end_token_to_its_last_step() -> None:
    grid, at = time_grid(3, 1e-3), np.arange(40)
    rule = DreamRule(alg="origin", grid=grid, prompt_len=2, length=40, deferred=frozenset({EOS}), seed=3)
    decided: list[int] = []
    for _ in range(3):
        open_ = np.setdiff1d(at, decided)
        asked = rule.ask(open_)
        chosen = rule.choose(open_, asked, np.where(asked % 4, 5, EOS), np.ones(len(asked), dtype=np.float32))
        assert rule.left(open_) is None
        decided += asked[chosen].tolist()
        early = [position for position in decided if position % 4 == 0]
        assert not early or len(decided) == 40
        assert len(asked) > 4
    assert sorted(decided) == at.tolist()


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_every_end_token_is_deferred_or_suppressed(alg: str) -> None:
    settings = {"gen_length": 12, "steps": 6, "alg": alg}
    free, _ = dream(network("dream"), prompt(6), 12, 6, alg=alg)
    ends = sorted({free[1], free[4], free[9]})
    deferred, barred = ask(
        [prompt(6)] * 2,
        [params(**settings, defer_eos=True), params(**settings, suppress_eos=True)],
        eos_token_ids=ends,
    )
    assert tokens(deferred) == dream(network("dream"), prompt(6), 12, 6, alg=alg, deferred=ends)[0] != free
    assert tokens(barred) == dream(network("dream"), prompt(6), 12, 6, alg=alg, suppressed=ends)[0]
    assert not set(tokens(barred)) & set(ends)


def test_equally_sure_positions_fall_where_the_published_sampler_puts_them() -> None:
    sure = np.array([1.0, 0.5, 1.0, 1.0, 0.25, 1.0, 1.0, 1.0], dtype=np.float32)
    rule = DreamRule(alg="maskgit_plus", grid=time_grid(3, 0.2), prompt_len=5, length=8)
    at = np.arange(8)
    chosen = rule.choose(at, at, at, sure)
    sequence = torch.tensor([-torch.inf] * 5 + sure.tolist())
    assert sorted((sequence.topk(int(chosen.sum())).indices - 5).tolist()) == np.flatnonzero(chosen).tolist()


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"alg": "quota"}, ["alg", "maskgit_plus"]), ({"block_length": 4, "remasking": "random"}, ["block_length"])],
    ids=["algorithm", "keys"],
)
def test_what_the_strategy_does_not_have_is_refused(settings: dict[str, Any], words: list[str]) -> None:
    with engine("dream", decoding_strategy="dream_canvas") as ready, pytest.raises(InvalidSamplingParams) as error:
        ready.generate(prompt(4), params(**settings))
    assert [word for word in words if word not in str(error.value)] == []
