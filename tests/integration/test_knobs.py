"""Every threshold and every configuration key of every strategy moves its decoding in the direction that is documented.

`KNOBS` is the inventory: a key of a strategy without an entry fails a test here, and so does an entry that is not the
strategy's any more.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import attrs
import numpy as np
import pytest

from diffulex_core.outputs import ReqTrajectory
from diffulex_core.sampling_params import DecodingThresholds, SamplingParams
from tests.integration.matrix import CASES, VARIANTS, Case, Checkpoints, Recipe, host, prompt
from tests.integration.watched import Watched

ROOT = Path(__file__).parents[2]
CASE_OF: Mapping[Recipe, Case] = {
    recipe: next(case for case in CASES if case.recipe == recipe) for recipe in sorted(VARIANTS)
}
END_TOKENS = tuple(range(0, 256, 2))
"""Half of the vocabulary, so that answers hold some."""

Play = tuple[Sequence[ReqTrajectory], Sequence[Sequence[Any]]]
"""Answers, and the canvas of each after every step."""


@attrs.frozen(kw_only=True)
class Knob:
    """A key, its values from low to high, and what they move.

    Attributes:
        values: ascending, as the documentation sorts them.
        measure: a number that never falls from one value to the next (never rises, where `falls`), and that differs
            between the first and the last.
        settings, ask: what else is set for it to matter.
        sharpness: see `Variant`.
    """

    values: tuple[Any, ...]
    measure: Callable[[Play], float]
    falls: bool = False
    settings: Mapping[str, Any] = attrs.field(factory=dict)
    ask: Mapping[str, Any] = attrs.field(factory=dict)
    sharpness: float = 3.0


@attrs.frozen
class ProvenBy:
    """A key whose effect another file's test shows."""

    path: str
    test: str


def forwards(play: Play) -> float:
    """Forwards of all answers."""
    return sum(answer.nfe for answer in play[0])


def rows(play: Play) -> float:
    """Rows that were fed."""
    return sum(step.rows for answer in play[0] for step in answer.trajectory)


def edits(play: Play) -> float:
    """Tokens that were replaced."""
    return sum(answer.tokens_edited for answer in play[0])


def length(play: Play) -> float:
    """Tokens of all answers."""
    return sum(len(answer.token_ids) for answer in play[0])


def sureness(play: Play) -> float:
    """Mean log probability of the tokens when they were decided."""
    return fmean(told.logprob for answer in play[0] for told in answer.logprobs or () if told is not None)


def end_tokens(play: Play) -> float:
    """End tokens in the answers."""
    return sum(token in END_TOKENS for answer in play[0] for token in answer.token_ids)


def reopened(play: Play) -> float:
    """Positions that were decided and are not any more, step by step."""
    return sum(
        int((before.decided & ~after.decided[: len(before.decided)]).sum())
        for canvases in play[1]
        for before, after in pairwise(canvases)
    )


def reach(play: Play) -> float:
    """How far behind the first open position tokens are decided, at most."""
    far = 0
    for canvases in play[1]:
        for canvas in canvases:
            open_, decided = np.flatnonzero(~canvas.decided), np.flatnonzero(canvas.decided)
            far = max(far, int(decided[-1] - open_[0])) if len(open_) and len(decided) else far
    return far


def last_burst(play: Play) -> float:
    """Positions that the last step of each answer decides."""
    before = [~canvases[-2].decided if len(canvases) > 1 else canvases[-1].decided for canvases in play[1]]
    return sum(int(open_.sum()) for open_ in before)


def equal_neighbours(play: Play) -> float:
    """Tokens that repeat the one before them in the same block of four."""
    found = 0
    for answer in play[0]:
        tokens = [0] * (answer.prompt_tokens % 4) + list(answer.token_ids)
        found += sum(tokens[at] == tokens[at - 1] for at in range(1, len(tokens)) if at % 4)
    return found


def ends_come_late(play: Play) -> float:
    """Mean step in which end tokens are decided, as a share of their answer's steps."""
    when = []
    for answer, canvases in zip(*play, strict=True):
        for at, token in enumerate(answer.token_ids):
            if token in END_TOKENS:
                first = next(step for step, canvas in enumerate(canvases) if canvas.decided[at])
                when.append((first + 1) / len(canvases))
    return fmean(when)


SURE = (0.0, 0.3, 0.7, 1.0)
BLOCK_THRESHOLDS: Mapping[str, Knob] = {
    "accept_threshold": Knob(values=SURE, measure=forwards),
    "add_block_threshold": Knob(values=(0.0, 0.5, 1.0), measure=forwards),
    "token_stability_threshold": Knob(values=(0.0, 1.0), measure=forwards),
}
FILL_THRESHOLDS: Mapping[str, Knob] = {
    **BLOCK_THRESHOLDS,
    # At an accept_threshold of 1 every token is one that a block decides although it is not sure.
    "semi_complete_threshold": Knob(values=(0.0, 0.5, 1.0), measure=forwards, settings={"accept_threshold": 1.0}),
}
OF_A_CANVAS: Mapping[str, Knob] = {
    "gen_length": Knob(values=(3, 8, 12), measure=length, ask={"gen_length": None}),
    "cfg_scale": Knob(values=(0.0, 1.0), measure=rows),
    "suppress_eos": Knob(values=(False, True), measure=end_tokens, falls=True, settings={"eos_token_ids": END_TOKENS}),
    "defer_eos": Knob(values=(False, True), measure=ends_come_late, settings={"eos_token_ids": END_TOKENS}),
}
MERGING = ProvenBy("plugins/diffulex_dmax/tests/test_dmax_decoding.py", "test_each_knob_of_merging_changes_the_answer")
EXACT: Mapping[str, Any] = {"exact_confidence": True}
GEMMA_KNOBS = "plugins/diffulex_gemma/tests/test_gemma_knobs.py"

KNOBS: Mapping[Recipe, Mapping[str, Knob | ProvenBy]] = {
    ("multi_bd", "naive"): FILL_THRESHOLDS,
    ("d2f", "naive"): FILL_THRESHOLDS,
    ("multi_bd", "edit"): {
        **BLOCK_THRESHOLDS,
        "edit_threshold": Knob(values=(0.0, 0.4, 1.0), measure=edits, falls=True),
        "remask_threshold": Knob(
            values=(0.0, 0.2, 0.8), measure=reopened, settings={"enable_remask": True, "edit_threshold": 0.5}
        ),
        "enable_remask": Knob(
            values=(False, True), measure=reopened, settings={"remask_threshold": 0.8, "edit_threshold": 0.5}
        ),
        "penalty_lambda": Knob(values=(0.0, 1000.0), measure=equal_neighbours, falls=True),
        "max_post_edit_steps": Knob(values=(0, 2, 8), measure=forwards),
    },
    ("dmax", "edit"): {
        **BLOCK_THRESHOLDS,
        "confident_commit_threshold": Knob(
            values=(0.0, 0.3, 1.0), measure=forwards, settings={**EXACT, "max_post_edit_steps": 6}
        ),
        "max_post_edit_steps": Knob(values=(0, 3, 8), measure=forwards, settings=EXACT),
        "token_merge_mode": MERGING,
        "token_merge_top_k": MERGING,
        "token_merge_renormalize": MERGING,
        "token_merge_weight": MERGING,
        "dmax_sampler_fast_path": Knob(
            values=(False, True), measure=forwards, falls=True, settings={"max_post_edit_steps": 6}
        ),
        "exact_confidence": Knob(values=(False, True), measure=forwards, settings={"max_post_edit_steps": 6}),
    },
    ("fast_dllm_v2", "naive"): {
        "accept_threshold": Knob(values=SURE, measure=forwards),
        "fdv2_use_block_cache": Knob(
            values=(False, True), measure=rows, falls=True, settings={"accept_threshold": 0.9}
        ),
    },
    ("diffusion_gemma", "naive"): {
        "diffusion_gemma_max_denoising_steps": ProvenBy(GEMMA_KNOBS, "test_more_denoising_steps_take_more_forwards"),
        "diffusion_gemma_stability_threshold": ProvenBy(
            GEMMA_KNOBS, "test_a_canvas_must_stay_the_same_for_longer_under_a_larger_stability_threshold"
        ),
        "diffusion_gemma_confidence_threshold": ProvenBy(
            GEMMA_KNOBS, "test_a_larger_confidence_threshold_ends_canvases_earlier"
        ),
        "diffusion_gemma_t_min": ProvenBy(GEMMA_KNOBS, "test_higher_temperatures_leave_more_entropy"),
        "diffusion_gemma_t_max": ProvenBy(GEMMA_KNOBS, "test_higher_temperatures_leave_more_entropy"),
        "diffusion_gemma_entropy_bound": ProvenBy(
            GEMMA_KNOBS, "test_a_larger_entropy_bound_keeps_more_of_what_was_drawn"
        ),
        "diffusion_gemma_shorten_last_canvas": Knob(
            values=(False, True), measure=rows, falls=True, ask={"max_tokens": 10}
        ),
    },
    ("llada_canvas", "naive"): {
        **OF_A_CANVAS,
        "steps": Knob(values=(2, 5, 10), measure=forwards),
        "block_length": Knob(values=(1, 4, 12), measure=reach),
        "remasking": Knob(values=("random", "low_confidence"), measure=sureness),
        "alg": Knob(
            values=("quota", "confidence_threshold"), measure=forwards, falls=True, settings={"accept_threshold": 0.3}
        ),
        "accept_threshold": Knob(values=SURE, measure=forwards, settings={"alg": "confidence_threshold"}),
    },
    ("dream_canvas", "naive"): {
        **OF_A_CANVAS,
        "steps": Knob(values=(2, 5, 10), measure=forwards, settings={"alg": "maskgit_plus"}),
        "alg": Knob(values=("origin", "maskgit_plus"), measure=sureness, settings={"steps": 8}),
        "alg_temp": Knob(
            values=(0.0, 100.0), measure=sureness, falls=True, settings={"alg": "maskgit_plus", "steps": 8}
        ),
        "eps": Knob(values=(1e-3, 0.3, 0.9), measure=last_burst, settings={"alg": "maskgit_plus", "steps": 6}),
        "skip_empty_steps": Knob(values=(False, True), measure=forwards, falls=True, settings={"steps": 40}),
        "accept_threshold": Knob(
            values=(0.2, 1.0), measure=forwards, settings={"alg": "confidence_threshold", "steps": 4}
        ),
    },
}

IDLE: Mapping[Recipe, Mapping[str, Any]] = {
    # They are keys of edit sampling, which is a mode of the same strategy.
    ("multi_bd", "naive"): {"max_post_edit_steps": 0, "penalty_lambda": 1000.0, "enable_remask": True},
}
"""Keys of a strategy that do nothing in a mode of it, and a value that would."""

REFUSED: Mapping[Recipe, frozenset[str]] = {("fast_dllm_v2", "naive"): frozenset({"fdv2_graph_modes"})}
"""Keys that accept nothing but their default, and say why."""


@pytest.fixture(scope="module")
def checkpoints() -> Iterator[Checkpoints]:
    made = Checkpoints()
    yield made
    made.close()


def play(
    case: Case, checkpoints: Checkpoints, settings: Mapping[str, Any], ask: Mapping[str, Any], sharpness: float
) -> Play:
    """Four answers of twelve tokens, greedy unless `ask` says otherwise."""
    case = attrs.evolve(case, variant=attrs.evolve(case.variant, sharpness=sharpness))
    canvas: dict[str, Any] = {"gen_length": 12} if case.variant.canvas else {}
    given = {"temperature": 0.0, "max_tokens": 12, "logprobs": 0, "ignore_eos": True, "seed": 7, **canvas, **ask}
    with Watched(case, checkpoints, **settings) as ready:
        ids = [ready.add(prompt(5 + 3 * number, number), SamplingParams(**given)) for number in range(4)]
        canvases: dict[int, list[Any]] = {each: [] for each in ids}
        while (plan := ready.step()) is not None:
            for window in plan.windows:
                canvases[window.request_id].append(ready.engine.peek(window.request_id)[0])
        return [ready.records[each] for each in ids], [canvases[each] for each in ids]


def keys(recipe: Recipe) -> set[str]:
    """Thresholds that a recipe reads, and keys of its strategy."""
    entry = host().strategies.entry(recipe[0])
    strategy = entry.descriptor.in_mode(recipe[1])
    names = set(strategy.thresholds)
    if strategy.config_cls is not None:
        options: Any = host().load(strategy.config_cls, provenance=entry.provenance)
        names |= {field.name for field in attrs.fields(options)}
    return names


@pytest.mark.parametrize("recipe", CASE_OF, ids=" ".join)
def test_every_threshold_and_key_of_a_strategy_is_in_the_inventory(recipe: Recipe) -> None:
    assert {*KNOBS[recipe], *IDLE.get(recipe, {}), *REFUSED.get(recipe, ())} == keys(recipe)


@pytest.mark.parametrize(
    ("key", "proof"),
    [(key, knob) for knobs in KNOBS.values() for key, knob in knobs.items() if isinstance(knob, ProvenBy)],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_proves_a_key_elsewhere_exists_and_names_it(key: str, proof: ProvenBy) -> None:
    text = (ROOT / proof.path).read_text()
    [body] = re.findall(rf"((?:^@.*\n|^[ )\]].*\n)*^def {proof.test}\b(?:.|\n)*?)(?=^\S|\Z)", text, re.MULTILINE)
    assert key.removeprefix("diffusion_gemma_") in body


@pytest.mark.parametrize(
    ("recipe", "key"),
    [(recipe, key) for recipe, knobs in KNOBS.items() for key, knob in knobs.items() if isinstance(knob, Knob)],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_a_key_moves_what_its_documentation_says(recipe: Recipe, key: str, checkpoints: Checkpoints) -> None:
    knob = KNOBS[recipe][key]
    assert isinstance(knob, Knob)
    found = [
        knob.measure(play(CASE_OF[recipe], checkpoints, {**knob.settings, key: value}, knob.ask, knob.sharpness))
        for value in knob.values
    ]
    assert found == sorted(found, reverse=knob.falls)
    assert found[0] != found[-1]


@pytest.mark.parametrize("recipe", CASE_OF, ids=" ".join)
def test_thresholds_that_a_strategy_does_not_read_change_nothing_and_are_named(
    recipe: Recipe, checkpoints: Checkpoints
) -> None:
    names = [field.name for field in attrs.fields(DecodingThresholds) if field.name not in KNOBS[recipe]]
    case = CASE_OF[recipe]
    plain, _ = play(case, checkpoints, {}, {}, 3.0)
    extreme, _ = play(case, checkpoints, {**dict.fromkeys(names, 1.0), **IDLE.get(recipe, {})}, {}, 3.0)
    assert [answer.token_ids for answer in extreme] == [answer.token_ids for answer in plain]
    with Watched(case, checkpoints) as ready:
        assert set(names) <= set(ready.engine.config.unused)
