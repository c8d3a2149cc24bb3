"""The tokens that Diffulex 0.1 produced, at no more forwards and rows than it took."""

from __future__ import annotations

from typing import Any

import pytest

from diffulex_core.outputs import ReqTrajectory
from diffulex_core.sampling_params import SamplingParams
from tests.integration.engines import engine, vectors

RECORDING = vectors("llada-d2f")
CASES = RECORDING["cases"]


def ask(cases: list[dict[str, Any]], **settings: Any) -> list[ReqTrajectory]:
    with engine(**{**RECORDING["config"], **settings}) as ready:
        params = [SamplingParams(**RECORDING["sampling"], max_tokens=len(case["tokens"])) for case in cases]
        return list(ready.generate([case["prompt"] for case in cases], params))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"prompt{len(case['prompt'])}")
@pytest.mark.parametrize("backend", ["torch_cpu", "torch_ref"])
def test_recorded_tokens_are_reproduced_one_by_one(case: dict[str, Any], backend: str) -> None:
    [answer] = ask([case], attn_impl=backend)
    assert list(answer.token_ids) == case["tokens"]
    assert sum(step.rows for step in answer.trajectory) < case["reference_rows"]
    aligned = len(case["prompt"]) % RECORDING["config"]["block_size"] == 0
    assert answer.nfe == case["reference_forwards"] - aligned


@pytest.mark.parametrize(
    "settings",
    [{}, {"max_num_batched_tokens": 64}, {"num_pages": 8}, {"page_size": 8}, {"page_size": 32}, {"max_num_reqs": 2}],
    ids=["batched", "small budget", "few pages", "small pages", "large pages", "two at a time"],
)
def test_recorded_tokens_do_not_depend_on_the_schedule(settings: dict[str, Any]) -> None:
    answers = ask(CASES, **settings)
    assert [list(answer.token_ids) for answer in answers] == [case["tokens"] for case in CASES]


def test_few_pages_do_preempt() -> None:
    answers = ask(CASES, num_pages=8)
    assert sum(answer.preemptions for answer in answers) > 0
