"""Fed the same random numbers, the published generation code and ours write the same canvases, token for token."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import pytest
from transformers import DiffusionGemmaForBlockDiffusion

from diffulex_core.engine import Diffulex
from diffulex_core.hookspecs import Register
from diffulex_core.host import Host
from diffulex_core.outputs import ReqTrajectory
from diffulex_core.plugin import Component, DecodingStrategy, hookimpl
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.types import CompletionReason
from diffulex_gemma.request import CanvasRequest
from diffulex_gemma.sampler import CanvasSampler
from tests.core.checkpoints import VOCAB_SIZE, write_tokenizer
from tests.families.canvas_serving import mild_model
from tests.families.gemma import CANVAS, SLIDING_WINDOW, save
from tests.families.native_canvases import TABLE, Native, native_answer

PROMPTS = [[(11 * at * at + 7 * at + 37 * salt + 3) % 200 + 20 for at in range(6 + salt)] for salt in range(3)]
MANY = 14
"""Tokens: three canvases and a half."""

WARM = {"t_min": 0.4, "t_max": 0.8, "entropy_bound": 6.0, "confidence_threshold": 0.005}
COOL = {"t_min": 0.05, "t_max": 0.3, "entropy_bound": 0.5, "confidence_threshold": 0.3}
COLD = {"t_min": 0.0, "t_max": 1e-6, "entropy_bound": 0.1, "confidence_threshold": 0.005}

table_request = partial(CanvasRequest, draws=TABLE)
table_sampler = partial(CanvasSampler, draws=TABLE)


def table_host() -> Host:
    """The installed plugins, and the strategy with other random numbers."""
    installed = Host.discover(environ={})
    strategy = attrs.evolve(
        installed.strategies.get("diffusion_gemma"),
        name="diffusion_gemma_table",
        req=f"{__name__}:table_request",
        sampler="diffusion_gemma_table",
    )
    plugin = ModuleType("table_plugin")

    @hookimpl
    def diffulex_register_strategies(register: Register[DecodingStrategy]) -> None:
        register(strategy)

    @hookimpl
    def diffulex_register_components(register: Register[Component]) -> None:
        register(Component(kind="sampler", name=strategy.name, factory=f"{__name__}:table_sampler"))

    vars(plugin)["diffulex_register_strategies"] = diffulex_register_strategies
    vars(plugin)["diffulex_register_components"] = diffulex_register_components
    return Host.discover(environ={}, extra=[plugin])


@attrs.frozen(kw_only=True, eq=False)
class Pair:
    """One checkpoint in both implementations."""

    model: DiffusionGemmaForBlockDiffusion
    folder: Path
    host: Host

    def native(self, rules: dict[str, Any], *, eos: Sequence[int] = ()) -> list[Native]:
        return [
            native_answer(self.model, text, seed=seed, max_tokens=MANY, eos=eos, **rules)
            for seed, text in enumerate(PROMPTS)
        ]

    def ours(
        self,
        rules: dict[str, Any],
        *,
        eos: Sequence[int] = (258,),
        prompts: Sequence[list[int]] = PROMPTS,
        max_tokens: int = MANY,
    ) -> list[ReqTrajectory]:
        named = {f"diffusion_gemma_{name}": value for name, value in rules.items()}
        options = {"page_size": 8, "num_pages": 48, "eos_token_ids": tuple(eos), "skip_warmup": True}
        asked = [SamplingParams(seed=seed, max_tokens=max_tokens) for seed in range(len(prompts))]
        with Diffulex(
            self.folder,
            host=self.host,
            strict=True,
            decoding_strategy="diffusion_gemma_table",
            # The nearest to exact numbers: with another rounding one or two answers in a hundred take another turn.
            attn_impl="torch_ref",
            **options,
            **named,
        ) as engine:
            return list(engine.generate(list(prompts), asked))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("gemma")
    model = mild_model(vocab_size=VOCAB_SIZE)
    save(model, folder)
    write_tokenizer(folder)
    return Pair(model=model, folder=folder, host=table_host())


@pytest.mark.parametrize(
    ("rules", "stability"),
    [(WARM, 1), (COOL, 0), (COOL, 1), (COOL, 2), (COLD, 1)],
    ids=["warm", "cool, stable at once", "cool", "cool, stable for long", "cold"],
)
def test_answers_and_forwards_are_those_of_the_published_code(
    pair: Pair, rules: dict[str, Any], stability: int
) -> None:
    assert min(map(len, PROMPTS)) > SLIDING_WINDOW
    rules = {**rules, "stability_threshold": stability, "max_denoising_steps": 6}
    native = pair.native(rules)
    answers = pair.ours(rules)
    assert [answer.token_ids for answer in answers] == [each.tokens[:MANY] for each in native]
    assert [answer.nfe for answer in answers] == [sum(each.steps) for each in native]
    assert all(len(each.steps) == 4 for each in native)


def test_the_rules_under_comparison_end_some_canvases_early_and_others_late(pair: Pair) -> None:
    rules = {**COOL, "stability_threshold": 1, "max_denoising_steps": 6}
    steps = {count for each in pair.native(rules) for count in each.steps}
    assert 6 in steps
    assert min(steps) < 6


def test_without_rules_those_of_the_published_code_apply(pair: Pair) -> None:
    native = native_answer(pair.model, PROMPTS[0], seed=0, max_tokens=CANVAS, entropy_bound=0.1)
    [answer] = pair.ours({}, prompts=PROMPTS[:1], max_tokens=CANVAS)
    assert answer.token_ids == native.tokens
    assert native.steps == (48,)


def test_several_end_tokens_end_an_answer_inside_a_canvas(pair: Pair) -> None:
    rules = {**COOL, "stability_threshold": 1, "max_denoising_steps": 4}
    whole = pair.native(rules)
    eos = [whole[0].tokens[6], whole[1].tokens[9]]
    native = pair.native(rules, eos=eos)
    answers = pair.ours(rules, eos=eos)
    ends = [next((at for at, token in enumerate(each.tokens) if token in eos), MANY) for each in native]
    assert [answer.token_ids for answer in answers] == [
        each.tokens[: min(end, MANY)] for each, end in zip(native, ends, strict=True)
    ]
    assert [answer.nfe for answer in answers] == [sum(each.steps) for each in native]
    assert answers[0].completion_reason is CompletionReason.STOP_EOS
    assert 0 < ends[0] % CANVAS < CANVAS


def test_what_is_counted_is_what_was_accepted(pair: Pair) -> None:
    rules = {**COOL, "stability_threshold": 1, "max_denoising_steps": 4}
    native, answers = pair.native(rules), pair.ours(rules)
    for each, answer in zip(native, answers, strict=True):
        assert answer.tokens_written == len(each.tokens) == 4 * CANVAS
        assert answer.tpf == MANY / sum(each.steps)
        assert answer.tokens_committed == 3 * CANVAS, "the last canvas is not encoded any more"
        written = [step.num_generated_tokens for step in answer.trajectory]
        assert [at + 1 for at, count in enumerate(written) if count] == [sum(each.steps[: n + 1]) for n in range(4)]
        assert set(written) <= {0, CANVAS}


def test_self_conditioning_matters_in_the_comparison(pair: Pair) -> None:
    rules = {**COOL, "stability_threshold": 1, "max_denoising_steps": 6}
    believed = pair.model.model.decoder.self_conditioning.down_proj.weight
    before = pair.native(rules)
    kept = believed.detach().clone()
    believed.data.zero_()
    without = pair.native(rules)
    believed.data.copy_(kept)
    assert all(one.tokens != other.tokens for one, other in zip(before, without, strict=True))


def test_at_temperature_zero_ours_is_the_limit_of_the_published_code(pair: Pair) -> None:
    rules = {**COLD, "stability_threshold": 1, "max_denoising_steps": 5}
    native = pair.native(rules)
    answers = pair.ours({**rules, "t_max": 0.0})
    assert [answer.token_ids for answer in answers] == [each.tokens[:MANY] for each in native]
