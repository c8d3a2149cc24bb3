"""The answers that the authors' own fixed-length samplers gave, token for token."""

from __future__ import annotations

from typing import Any

import pytest

from diffulex_core.outputs import ReqTrajectory
from diffulex_core.sampling_params import SamplingParams
from tests.integration.engines import engine, vectors

RECORDINGS = {"llada-canvas": "llada_canvas", "dream-canvas": "dream_canvas"}
EACH_RECORDING = pytest.mark.parametrize("name", RECORDINGS)


def ask(name: str, cases: list[dict[str, Any]], **settings: Any) -> list[ReqTrajectory]:
    checkpoint = vectors(name)["checkpoint"]
    with engine(checkpoint, decoding_strategy=RECORDINGS[name], **settings) as ready:
        params = [SamplingParams(**_settings(case), ignore_eos=True) for case in cases]
        return list(ready.generate([case["prompt"] for case in cases], params))


def _settings(case: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in case.items() if key not in ("prompt", "tokens")}


@pytest.mark.parametrize(
    ("name", "case"),
    [
        pytest.param(name, case, id=f"{name}-{index}")
        for name in RECORDINGS
        for index, case in enumerate(vectors(name)["cases"])
    ],
)
def test_recorded_answers_are_reproduced_one_by_one(name: str, case: dict[str, Any]) -> None:
    [answer] = ask(name, [case])
    assert list(answer.token_ids) == case["tokens"]
    # Dream's first step of as many steps as masks decides nothing, and is left out.
    assert answer.nfe == case["steps"] - (name == "dream-canvas" and case["steps"] == case["gen_length"])
    rows = len(case["prompt"]) + case["gen_length"]
    assert {step.rows for step in answer.trajectory} == {rows * (2 if case.get("cfg_scale") else 1)}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"attn_impl": "torch_ref", "page_size": 8},
        {"max_num_batched_tokens": 170},
        {"num_pages": 12},
        {"max_logits_tokens": 7},
        {"max_num_reqs": 3, "page_size": 32},
    ],
    ids=["batched", "reference backend", "small budget", "few pages", "small logits budget", "three at a time"],
)
@EACH_RECORDING
def test_recorded_answers_do_not_depend_on_the_schedule(name: str, settings: dict[str, Any]) -> None:
    cases = vectors(name)["cases"]
    answers = ask(name, cases, **settings)
    assert [list(answer.token_ids) for answer in answers] == [case["tokens"] for case in cases]


def test_steps_that_decide_nothing_are_taken_when_asked_for() -> None:
    [case] = [each for each in vectors("dream-canvas")["cases"] if each["alg"] == "entropy" and each["steps"] == 32][:1]
    [answer] = ask("dream-canvas", [{**case, "skip_empty_steps": False}])
    assert list(answer.token_ids) == case["tokens"]
    assert answer.nfe == case["steps"]
