"""Log-likelihoods from an engine: the published estimate, whatever else the engine does and however little it may."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import attrs
import numpy as np
import pytest
import torch

from diffulex_core.engine import Diffulex
from diffulex_core.errors import (
    IncompatibleError,
    InvalidPrompt,
    InvalidSamplingParams,
    NonFiniteLogits,
    PluginError,
    PromptTooLong,
    RequestError,
)
from diffulex_core.evaluation.masks import draw_masks, seed_for
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.types import StepOutput, StepPlan
from tests.families.oracle_canvas import network
from tests.families.oracle_likelihood import estimate, expectation
from tests.integration.engines import MASK, engine, prompt

FAMILIES = (("llada", "llada_canvas"), ("dream", "dream_canvas"))
EACH = pytest.mark.parametrize("checkpoint", [checkpoint for checkpoint, _ in FAMILIES])
PAIRS: list[tuple[list[int], list[int]]] = [
    (prompt(7), prompt(5, 3)),
    (prompt(1), prompt(9, 4)),
    (prompt(30), prompt(1, 5)),
    ([], prompt(6, 6)),
    (prompt(7), prompt(3, 7)),
]


@pytest.fixture(scope="module")
def engines() -> Iterator[dict[str, Diffulex]]:
    with (
        engine("llada", decoding_strategy="llada_canvas") as llada,
        engine("dream", decoding_strategy="dream_canvas") as dream,
    ):
        yield {"llada": llada, "dream": dream}


def draws(context: list[int], answer: list[int], count: int, batch: int, seed: int) -> list[list[int]]:
    """The maskings that the engine draws, each as often as it counts."""
    masks = draw_masks(len(answer), draws=count, batch=batch, seed=seed_for(seed, np.array(context, dtype=np.int64)))
    times = np.rint(masks.share * count).astype(int)
    return [np.flatnonzero(row).tolist() for row, many in zip(masks.hidden, times, strict=True) for _ in range(many)]


@EACH
@pytest.mark.parametrize("scale", [0.0, 1.3])
def test_values_are_those_of_the_published_estimate_on_the_native_network(
    engines: dict[str, Diffulex], checkpoint: str, scale: float
) -> None:
    values = engines[checkpoint].log_likelihood(PAIRS, mc_num=10, batch_size=4, cfg_scale=scale, seed=2)
    net = network(checkpoint)
    wanted = [estimate(net, *pair, draws(*pair, 10, 4, seed=2), scale) for pair in PAIRS]
    assert values == pytest.approx(wanted, rel=2e-5)


@EACH
@pytest.mark.parametrize("batch", [1, 16])
def test_the_mean_of_many_estimates_is_the_exact_expectation(
    engines: dict[str, Diffulex], checkpoint: str, batch: int
) -> None:
    pair = (prompt(6), prompt(4, 2))
    exact = expectation(network(checkpoint), *pair)
    few = [engines[checkpoint].log_likelihood([pair], mc_num=16, batch_size=batch, seed=at)[0] for at in range(60)]
    error = np.std(few) / np.sqrt(len(few))
    assert abs(np.mean(few) - exact) < 3.5 * error
    [many] = engines[checkpoint].log_likelihood([pair], mc_num=10_000, batch_size=batch)
    assert many == pytest.approx(exact, abs=5 * np.std(few) * np.sqrt(16 / 10_000))


@EACH
def test_a_single_token_costs_one_forward_and_is_exact(
    engines: dict[str, Diffulex], checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready, context = engines[checkpoint], prompt(12)
    made = spied(ready, monkeypatch)
    values = ready.log_likelihood([(context, [token]) for token in (20, 70, 33)])
    assert len(made) == 3
    rows = network(checkpoint)([*context, MASK])[-1].double()
    assert values == pytest.approx(rows.log_softmax(-1)[[20, 70, 33]].tolist(), rel=1e-5)


def test_the_mask_token_has_its_share_of_the_distribution_as_in_published_code(
    engines: dict[str, Diffulex], monkeypatch: pytest.MonkeyPatch
) -> None:
    ready, context = engines["llada"], prompt(12)
    model = ready._open.runner.network  # type: ignore[attr-defined]
    logits = model.logits

    def sure_of_masks(hidden: torch.Tensor) -> torch.Tensor:
        rows: torch.Tensor = logits(hidden).clone()
        rows[:, MASK] = 15.0
        return rows

    monkeypatch.setattr(model, "logits", sure_of_masks)
    rows = network("llada")([*context, MASK])[-1].double()
    rows[MASK] = 15.0
    assert rows.softmax(-1)[MASK] > 0.1
    assert ready.log_likelihood([(context, [20])]) == pytest.approx([rows.log_softmax(-1)[20].item()], rel=1e-5)


def test_equal_maskings_are_computed_once(engines: dict[str, Diffulex], monkeypatch: pytest.MonkeyPatch) -> None:
    made = spied(engines["llada"], monkeypatch)
    engines["llada"].log_likelihood([(prompt(5), prompt(3, 1))], mc_num=1000)
    assert len(made) == 2**3 - 1


def spied(ready: Diffulex, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Ids of the requests that are submitted from now on."""
    made: list[int] = []
    submit = ready.submit

    def spy(*given: Any, **named: Any) -> Any:
        request = submit(*given, **named)
        made.append(request.request_id)
        return request

    monkeypatch.setattr(ready, "submit", spy)
    return made


def test_a_value_does_not_depend_on_the_other_pairs_or_their_order(engines: dict[str, Diffulex]) -> None:
    ready = engines["llada"]
    together = ready.log_likelihood(PAIRS, mc_num=9)
    assert ready.log_likelihood(PAIRS[::-1], mc_num=9)[::-1] == together
    assert [ready.log_likelihood([pair], mc_num=9)[0] for pair in PAIRS] == together
    assert ready.log_likelihood(PAIRS, mc_num=9, seed=1) != together
    assert ready.log_likelihood([]) == []


@pytest.mark.parametrize(
    "settings",
    [{"num_pages": 9}, {"max_num_batched_tokens": 80}, {"max_num_reqs": 1}, {"max_logits_tokens": 2}],
    ids=["few pages", "small budget", "one at a time", "two rows of logits"],
)
@pytest.mark.parametrize(("checkpoint", "strategy"), FAMILIES)
def test_values_do_not_depend_on_what_there_is_room_for(
    engines: dict[str, Diffulex], checkpoint: str, strategy: str, settings: dict[str, Any]
) -> None:
    asked: dict[str, Any] = {"mc_num": 6, "cfg_scale": 0.7}
    with engine(checkpoint, decoding_strategy=strategy, **settings) as ready:
        assert ready.log_likelihood(PAIRS, **asked) == engines[checkpoint].log_likelihood(PAIRS, **asked)
        ready._open.scheduler.check_integrity()


def test_other_requests_go_on_meanwhile_and_get_their_answers(engines: dict[str, Diffulex]) -> None:
    ready = engines["llada"]
    params = SamplingParams(temperature=0, gen_length=8, ignore_eos=True)
    [alone], values = ready.generate(prompt(9), params), ready.log_likelihood(PAIRS[:2], mc_num=40)
    waiting = ready.add_request(prompt(9), params)
    assert ready.log_likelihood(PAIRS[:2], mc_num=40) == values
    finished = list(ready.step().finished)
    while not ready.is_finished():
        finished += ready.step().finished
    assert [(record.req_id, record.token_ids) for record in finished] == [(waiting, alone.token_ids)]


def test_texts_are_tokenised_as_one_and_spaces_belong_to_the_continuation(engines: dict[str, Diffulex]) -> None:
    ready = engines["llada"]
    ids = ready.tokenizer.encode("the answer: yes, it is")
    cut = len(ready.tokenizer.encode("the answer:"))
    wanted = ready.log_likelihood([(ids[:cut], ids[cut:])])
    for pair in (("the answer:", " yes, it is"), ("the answer: ", "yes, it is"), (ids[:cut], np.array(ids[cut:]))):
        assert ready.log_likelihood([pair]) == wanted
    assert ready.log_likelihood([("", "the answer")]) == ready.log_likelihood([([], ids[:10])])


def test_strategies_without_full_attention_are_refused_with_those_that_have_it() -> None:
    with engine("llada") as ready, pytest.raises(IncompatibleError, match="'dream_canvas' or 'llada_canvas'"):
        ready.log_likelihood(PAIRS)
    with engine("sdar", block_size=4) as ready, pytest.raises(IncompatibleError, match="'sdar' has no strategy"):
        ready.log_likelihood(PAIRS)


@pytest.mark.parametrize(
    ("pair", "error", "message"),
    [
        ((prompt(5), []), InvalidPrompt, "Pair 1: the continuation has no tokens"),
        ((prompt(5), ""), InvalidPrompt, "Pair 1: the continuation has no tokens"),
        ((prompt(5), [MASK]), InvalidPrompt, "Pair 1: .*mask token"),
        ((prompt(5), [99999]), InvalidPrompt, "Pair 1: Token id 99999"),
        ((prompt(5), "\ud800"), InvalidPrompt, "Pair 1: .*not valid text"),
        ((prompt(5), 7), InvalidPrompt, "Pair 1: "),
        ((prompt(5), prompt(5), prompt(5)), InvalidPrompt, "Pair 1 is not a context and a continuation"),
        ("ab", InvalidPrompt, "Pair 1 is not a context and a continuation"),
        (7, InvalidPrompt, "Pair 1 is not a context and a continuation"),
        ((prompt(200), prompt(57)), PromptTooLong, "Pair 1 has 257 tokens, but max_model_len is 256"),
    ],
)
def test_a_pair_that_cannot_be_served_is_refused_before_anything_is_computed(
    engines: dict[str, Diffulex], pair: Any, error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = spied(engines["llada"], monkeypatch)
    with pytest.raises(error, match=message):
        engines["llada"].log_likelihood([PAIRS[0], pair])
    assert made == []


def test_a_pair_that_never_fits_a_step_is_refused_before_anything_is_computed() -> None:
    with engine(decoding_strategy="llada_canvas", max_num_batched_tokens=64, max_num_reqs=1) as ready:
        with pytest.raises(PromptTooLong, match="needs 80 rows"):
            ready.log_likelihood([PAIRS[0], (prompt(30), prompt(10))], cfg_scale=1.0, mc_num=40)
        assert ready.is_finished()
        ready.add_request(prompt(5), SamplingParams(temperature=0, gen_length=2))
        plan = ready.step().plan
        assert plan is not None
        assert plan.step == 0
        ready.step()
        assert len(ready.log_likelihood([PAIRS[0], (prompt(30), prompt(10))])) == 2


@pytest.mark.parametrize(
    "given",
    [{"mc_num": 0}, {"mc_num": 1.5}, {"batch_size": 0}, {"cfg_scale": -1}, {"cfg_scale": True}, {"seed": "x"}],
)
def test_settings_out_of_range_are_named(engines: dict[str, Diffulex], given: dict[str, Any]) -> None:
    [name] = given
    with pytest.raises(InvalidSamplingParams, match=f"{name} is "):
        engines["llada"].log_likelihood(PAIRS, **given)


def test_numbers_of_numpy_are_numbers(engines: dict[str, Diffulex]) -> None:
    given: dict[str, Any] = {"mc_num": 3, "batch_size": 2, "cfg_scale": 0.5, "seed": 4}
    numpy = {"mc_num": np.int64(3), "batch_size": np.int32(2), "cfg_scale": np.float32(0.5), "seed": np.uint8(4)}
    assert engines["llada"].log_likelihood(PAIRS, **numpy) == engines["llada"].log_likelihood(PAIRS, **given)


def test_a_forward_that_somebody_else_aborts_is_an_error_and_leaves_nothing_behind(
    engines: dict[str, Diffulex], monkeypatch: pytest.MonkeyPatch
) -> None:
    ready, step = engines["llada"], engines["llada"].step
    made = spied(ready, monkeypatch)

    def aborting(**given: Any) -> Any:
        ready.abort_request(made[-1])
        return step(**given)

    with monkeypatch.context() as patch:
        patch.setattr(ready, "step", aborting)
        with pytest.raises(RequestError, match=r"Pair 0: one of its forwards was aborted"):
            ready.log_likelihood(PAIRS[:1], mc_num=40)
    assert ready.is_finished()
    ready._open.scheduler.check_integrity()
    assert np.isfinite(ready.log_likelihood(PAIRS, mc_num=2)).all()


def test_logits_that_are_not_numbers_are_an_error_and_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    with engine(decoding_strategy="llada_canvas") as ready:
        model = ready._open.runner.network  # type: ignore[attr-defined]
        logits = model.logits

        def spoiled(hidden: torch.Tensor) -> torch.Tensor:
            rows: torch.Tensor = logits(hidden).clone()
            rows[0] = torch.nan
            return rows

        with monkeypatch.context() as patch:
            patch.setattr(model, "logits", spoiled)
            with pytest.raises(NonFiniteLogits):
                ready.log_likelihood(PAIRS)
        assert ready.is_finished()
        ready._open.scheduler.check_integrity()
        assert np.isfinite(ready.log_likelihood(PAIRS, mc_num=2)).all()


def test_a_sampler_that_tells_nothing_of_watched_tokens_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with engine(decoding_strategy="llada_canvas") as ready:
        execute = ready._open.runner.execute

        def silent(plan: StepPlan) -> StepOutput:
            output = execute(plan)
            return attrs.evolve(
                output, decisions=tuple(attrs.evolve(each, watched_log=None) for each in output.decisions)
            )

        with monkeypatch.context() as patch:
            patch.setattr(ready._open.runner, "execute", silent)
            with pytest.raises(PluginError, match="sampler does not tell"):
                ready.log_likelihood(PAIRS)
        assert ready.is_finished()
        assert ready.log_likelihood([]) == []


def test_long_runs_tell_how_far_they_are(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    with engine(decoding_strategy="llada_canvas", max_num_reqs=2) as ready, caplog.at_level(logging.INFO):
        ready.log_likelihood(PAIRS, mc_num=4, progress_log_interval=1e-6, use_tqdm=True)
    assert any("3 of 5 pairs evaluated after" in record.getMessage() for record in caplog.records)
    assert "Evaluating: 100%" in capsys.readouterr().err
