"""Fixed-length generation in an engine: company, guidance, limits, early ends, and what is refused."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

from diffulex_core.engine import Diffulex
from diffulex_core.errors import InvalidSamplingParams, PromptTooLong
from diffulex_core.host import Host
from diffulex_core.outputs import ReqTrajectory
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.types import CompletionReason
from tests.core.throwaway import Site
from tests.families.oracle_canvas import network
from tests.integration.engines import MASK, PARITY, SETTINGS, engine, host as installed, prompt

EACH_STRATEGY = pytest.mark.parametrize(
    ("strategy", "checkpoint"), [("llada_canvas", "llada"), ("dream_canvas", "dream"), ("llada_canvas", "dream")]
)


def params(**settings: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0.0, "ignore_eos": True, "seed": 4, "gen_length": 12, **settings})


def canvas(strategy: str = "llada_canvas", checkpoint: str = "llada", **settings: Any) -> Diffulex:
    return engine(checkpoint, decoding_strategy=strategy, **settings)


def tokens(answers: Any) -> list[list[int]]:
    return [list(answer.token_ids) for answer in answers]


def eight(strategy: str) -> list[SamplingParams]:
    """Requests that differ in everything that a request may say."""
    own: list[dict[str, Any]] = (
        [
            {"block_length": 5, "steps": 7},
            {"remasking": "random", "steps": 5},
            {"alg": "confidence_threshold", "thresholds": {"accept_threshold": 0.4}},
            {"remasking": "random", "temperature": 0.6, "cfg_scale": 0.5},
            {"defer_eos": True, "block_length": 3},
        ]
        if strategy == "llada_canvas"
        else [
            {"alg": "entropy", "steps": 7},
            {"alg": "origin", "steps": 5, "temperature": 0.4},
            {"alg": "confidence_threshold", "thresholds": {"accept_threshold": 0.4}, "steps": 9},
            {"alg": "maskgit_plus", "alg_temp": 0.5, "steps": 6, "cfg_scale": 0.5},
            {"alg": "topk_margin", "top_p": 0.8, "defer_eos": True, "steps": 8},
        ]
    )
    common = [
        {"gen_length": 30, "steps": 10, "temperature": 1.0},
        {"gen_length": 1, "steps": 3},
        {"gen_length": 9, "cfg_scale": 2.0, "suppress_eos": True, "steps": 4},
    ]
    return [params(**each, seed=index) for index, each in enumerate((*own, *common))]


@EACH_STRATEGY
def test_eight_different_requests_in_a_batch_equal_each_alone(strategy: str, checkpoint: str) -> None:
    prompts, each = [prompt(2 + 3 * index, salt=index) for index in range(8)], eight(strategy)
    with canvas(strategy, checkpoint) as ready:
        together = ready.generate(prompts, each)
        alone = [ready.generate(text, one)[0] for text, one in zip(prompts, each, strict=True)]
    assert tokens(together) == tokens(alone)
    assert [answer.nfe for answer in together] == [answer.nfe for answer in alone]
    for answer, one in zip(together, each, strict=True):
        assert len(answer.token_ids) == one.gen_length
        assert MASK not in answer.token_ids
        assert answer.tokens_written == one.gen_length
        assert answer.tokens_committed == answer.tokens_edited == answer.cached_tokens == 0


@pytest.mark.parametrize(
    "settings",
    [{"num_pages": 8}, {"max_num_batched_tokens": 100}, {"max_num_reqs": 2}, {"max_logits_tokens": 2}],
    ids=["few pages", "small budget", "two at a time", "two rows of logits"],
)
@EACH_STRATEGY
def test_answers_do_not_depend_on_what_there_is_room_for(
    strategy: str, checkpoint: str, settings: dict[str, Any]
) -> None:
    prompts, each = [prompt(2 + 3 * index, salt=index) for index in range(8)], eight(strategy)
    with canvas(strategy, checkpoint) as ready:
        expected = tokens(ready.generate(prompts, each))
    with canvas(strategy, checkpoint, **settings) as ready:
        assert tokens(ready.generate(prompts, each)) == expected


def test_guidance_of_zero_is_none_and_costs_nothing() -> None:
    with canvas() as ready:
        plain, zero, some = (
            ready.generate(prompt(7), params(**more))[0] for more in ({}, {"cfg_scale": 0.0}, {"cfg_scale": 1.5})
        )
    assert tokens([zero]) == tokens([plain])
    assert {step.rows for step in plain.trajectory} == {step.rows for step in zero.trajectory} == {19}
    assert {step.rows for step in some.trajectory} == {38}
    assert tokens([some]) != tokens([plain])


def test_guided_requests_lose_and_regain_both_sequences_when_pages_run_out() -> None:
    prompts = [prompt(9 + index, salt=index) for index in range(4)]
    each = [params(gen_length=14, steps=14, cfg_scale=0.4 * index) for index in range(4)]
    with canvas() as ready:
        expected = tokens(ready.generate(prompts, each))
    with canvas(page_size=8, num_pages=12) as ready:
        assert tokens(ready.generate(prompts, each)) == expected


def test_an_aborted_guided_request_gives_all_its_pages_back() -> None:
    with canvas(num_pages=6) as ready:
        for _ in range(5):
            request = ready.add_request(prompt(30), params(gen_length=10, cfg_scale=1.0))
            ready.step()
            assert ready.abort_request(request)
        [record] = ready.generate(prompt(30), params(gen_length=10, cfg_scale=1.0))
    assert record.tokens_visible == 10


@pytest.mark.parametrize(("scale", "need"), [(0.0, 60), (1.0, 120)], ids=["plain", "guided"])
def test_a_canvas_that_can_never_fit_is_refused_with_the_rows_it_needs(scale: float, need: int) -> None:
    with canvas(max_num_batched_tokens=need - 1, max_model_len=59 if scale == 0 else 256) as ready:
        length = 39 if scale == 0 else 40
        if scale == 0:
            assert ready.generate(prompt(20), params(gen_length=length))[0].tokens_visible == length
        else:
            with pytest.raises(PromptTooLong, match=f"needs {need} rows in one step"):
                ready.generate(prompt(20), params(gen_length=length, cfg_scale=scale))


def test_a_guided_canvas_that_the_cache_cannot_hold_twice_is_refused() -> None:
    with canvas(num_pages=5, max_model_len=48) as ready:
        assert ready.generate(prompt(30), params(gen_length=18))[0].tokens_visible == 18
        with pytest.raises(PromptTooLong, match=r"48 cache slots twice \(6 pages\)"):
            ready.generate(prompt(30), params(gen_length=18, cfg_scale=1.0))


def test_a_length_that_was_asked_for_must_fit_the_context_and_max_tokens_is_cut_there() -> None:
    with canvas(max_model_len=40) as ready:
        with pytest.raises(PromptTooLong, match="Set gen_length to 10 or less"):
            ready.generate(prompt(30), params(gen_length=11))
        [cut] = ready.generate(prompt(30), params(gen_length=None, max_tokens=500))
        [asked] = ready.generate(prompt(30), params(gen_length=10, max_tokens=3))
    assert len(cut.token_ids) == len(asked.token_ids) == 10
    assert cut.completion_reason is CompletionReason.LENGTH_CONTEXT
    assert asked.completion_reason is CompletionReason.LENGTH_TOKENS


@EACH_STRATEGY
def test_an_answer_ends_early_once_nothing_can_change_what_is_seen(strategy: str, checkpoint: str) -> None:
    more = {"block_length": 4} if strategy == "llada_canvas" else {"alg": "maskgit_plus", "steps": 24}
    settings = {"gen_length": 24, **more}
    saved = 0
    for salt in range(6):
        with canvas(strategy, checkpoint) as ready:
            [whole] = ready.generate(prompt(8, salt), params(**settings))
        for at in (2, 9, 20):
            end = whole.token_ids[at]
            first = whole.token_ids.index(end)
            with canvas(strategy, checkpoint, eos_token_ids=[end]) as ready:
                [early] = ready.generate(prompt(8, salt), params(**settings, ignore_eos=False))
            assert early.token_ids == whole.token_ids[:first]
            assert early.completion_reason is CompletionReason.STOP_EOS
            assert early.nfe <= whole.nfe
            saved += whole.nfe - early.nfe
    assert saved > 20


def test_a_canvas_cut_off_by_max_nfe_gives_its_longest_decided_prefix() -> None:
    with canvas() as ready:
        [whole] = ready.generate(prompt(5), params(block_length=3))
        [cut] = ready.generate(prompt(5), params(block_length=3, max_nfe=7))
    assert cut.completion_reason is CompletionReason.NFE_LIMIT
    assert 6 <= len(cut.token_ids) < 12
    assert cut.token_ids == whole.token_ids[: len(cut.token_ids)]


def test_a_stream_shows_every_step_of_the_canvas() -> None:
    with canvas() as ready, ready.stream(prompt(6), params(steps=4)) as generation:
        events = list(generation)
        [answer] = generation.outputs
    assert [len(event.newly_decided) for event in events] == [3, 3, 3, 3]
    assert [int(event.canvas.decided.sum()) for event in events] == [3, 6, 9, 12]
    for event in events:
        assert (event.canvas.tokens[~event.canvas.decided] == MASK).all()
        assert ((event.confidence > 0) & (event.confidence <= 1)).all()
    assert events[-1].canvas.tokens.tolist() == list(answer.token_ids)


def test_traces_tell_prompt_and_canvas_as_one_block() -> None:
    with canvas(save_trace=True) as ready:
        [answer] = ready.generate(prompt(6), params(block_length=6, steps=4))
    [blocks] = zip(*(step.block_trace for step in answer.trajectory), strict=True)
    assert [(block.block_id, block.num_mask_tokens) for block in blocks] == [(0, 12), (0, 9), (0, 6), (0, 3)]
    assert [block.progress for block in blocks] == pytest.approx([6 / 18, 9 / 18, 12 / 18, 15 / 18])
    assert all(len(step.running_token_ids) == 18 for step in answer.trajectory)


@pytest.mark.parametrize("budget", [2, 7, 30])
def test_never_more_rows_of_logits_exist_than_the_budget_allows(budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []
    with canvas(max_logits_tokens=budget) as ready:
        network = ready._open.runner.network  # type: ignore[attr-defined]
        head = network.logits

        def spy(hidden: torch.Tensor) -> torch.Tensor:
            rows.append(len(hidden))
            logits: torch.Tensor = head(hidden)
            return logits

        monkeypatch.setattr(network, "logits", spy)
        ready.generate([prompt(4), prompt(9)], [params(gen_length=20), params(gen_length=20, cfg_scale=1.0)])
    # Rows of the head are padded to a multiple of eight.
    assert max(rows) <= -(-budget // 8) * 8
    assert len(rows) > 20


def test_settings_of_a_canvas_are_refused_by_other_strategies() -> None:
    with engine() as ready, pytest.raises(InvalidSamplingParams, match="gen_length, steps are settings"):
        ready.generate(prompt(4), SamplingParams(gen_length=8, steps=4))


def test_seeds_decide_drawn_answers_and_nothing_else_does() -> None:
    drawn = params(temperature=1.0, seed=8, gen_length=20, steps=5)
    with canvas() as ready:
        [one] = ready.generate(prompt(4), drawn)
        company = ready.generate([prompt(9), prompt(4)], [params(temperature=0.7, cfg_scale=1.0), drawn])
        [other] = ready.generate(prompt(4), params(temperature=1.0, seed=9, gen_length=20, steps=5))
    assert company[1].token_ids == one.token_ids
    assert other.token_ids != one.token_ids


CODE = """
from diffulex_core.sampling import PackedSampler
from diffulex_dream.canvas.request import make_request

SEEN = []

def rewrite(step, tokens):
    SEEN.append((step, tokens.tolist()))
    if step is None:
        tokens[-1] = 46
    if step == 1:
        tokens[9] = 280
    return tokens

def make(**given):
    return make_request(**given, tokens_hook=rewrite)

class Reversed(PackedSampler):
    def score(self, logits, batch):
        return super().score(-logits, batch)
"""

PLUGIN = """
@hookimpl
def diffulex_register_components(register):
    register(Component(kind="sampler", name="reversed", factory="hooked_code:Reversed"))

@hookimpl
def diffulex_register_strategies(register):
    recipe = dict(
        pattern="diffulex_core.canvas.pattern:full_canvas",
        config_cls="diffulex_dream.canvas.options:DreamCanvasOptions",
    )
    register(DecodingStrategy(name="rewritten", req="hooked_code:make", **recipe))
    make = "diffulex_dream.canvas.request:make_request"
    register(DecodingStrategy(name="reversed", req=make, sampler="reversed", **recipe))
"""


@pytest.fixture
def hooked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """The installed plugins and one with strategies that hook into dream_canvas."""
    installed()  # found, and remembered for other tests, before the site is there
    site = Site(tmp_path / "site")
    site.install("hooked", PLUGIN)
    (site.path / "hooked_code.py").write_text(CODE)
    monkeypatch.syspath_prepend(site.path)
    return Host.discover()


def test_a_plugins_tokens_hook_rewrites_the_sequence_between_steps(hooked: Host) -> None:
    settings = {**SETTINGS, "decoding_strategy": "rewritten"}
    with Diffulex(PARITY / "checkpoints" / "dream", host=hooked, strict=True, **settings) as ready:
        with ready.stream(prompt(6), params(gen_length=6, steps=3, alg="maskgit_plus")) as generation:
            events = list(generation)
        [answer] = generation.outputs
    seen = importlib.import_module("hooked_code").SEEN
    assert [step for step, _ in seen] == [None, 0, 1, 2]
    assert seen[0][1] == [*prompt(6), *[MASK] * 6]
    assert answer.token_ids[-1] == 46
    assert MASK not in answer.token_ids
    assert all(tokens[-1] == 46 for _, tokens in seen[1:])
    assert not events[1].canvas.decided[3]
    assert 9 in events[2].newly_decided
    assert 11 not in [position for event in events for position in event.newly_decided]


def test_a_plugins_sampler_may_change_the_logits(hooked: Host) -> None:
    settings = {**SETTINGS, "decoding_strategy": "reversed"}
    with Diffulex(PARITY / "checkpoints" / "dream", host=hooked, strict=True, **settings) as ready:
        [answer] = ready.generate(prompt(6), params(gen_length=1, alg="maskgit_plus"))
    logits = network("dream")([*prompt(6), MASK])[6]
    logits[MASK] = torch.inf
    assert answer.token_ids[0] == int(logits[:282].argmin())


def test_prefix_caching_is_off() -> None:
    with canvas() as ready:
        assert not ready.config.cache.enable_prefix_caching
        answers: list[ReqTrajectory] = list(ready.generate([prompt(32)] * 2, params(gen_length=4)))
    assert answers[0].token_ids == answers[1].token_ids
