"""The automatic cap on forwards is about the answer, whatever pieces the schedule cuts a prompt into."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from diffulex_core.outputs import ReqTrajectory
from diffulex_core.types import CompletionReason
from tests.integration.matrix import CASES, Case, Checkpoints, params, prompt
from tests.integration.watched import Watched

CHUNKED = list({case.recipe: case for case in reversed(CASES) if case.variant.chunks}.values())


@pytest.fixture(scope="module")
def checkpoints() -> Iterator[Checkpoints]:
    made = Checkpoints()
    yield made
    made.close()


def answer(case: Case, checkpoints: Checkpoints, budget: int, cap: int) -> ReqTrajectory:
    """To a long prompt, in at most `budget` rows a forward and with `cap` forwards for the answer."""
    with Watched(
        case,
        checkpoints,
        max_num_batched_tokens=budget,
        auto_max_nfe=True,
        auto_max_nfe_warmup_steps=cap,
        auto_max_nfe_tpf_floor=1000.0,
    ) as ready:
        [record] = ready.serve([prompt(64)], [params({"temperature": 0.0, "max_tokens": 8}, 0)])
    return record


@pytest.mark.parametrize("case", CHUNKED, ids=lambda case: " ".join(case.recipe))
def test_pieces_of_a_prompt_do_not_use_up_the_cap(case: Case, checkpoints: Checkpoints) -> None:
    whole = answer(case, checkpoints, budget=128, cap=500)
    assert whole.completion_reason is CompletionReason.LENGTH_TOKENS
    pieces = answer(case, checkpoints, budget=24, cap=whole.nfe)
    assert pieces.nfe > whole.nfe
    assert (pieces.token_ids, pieces.completion_reason) == (whole.token_ids, whole.completion_reason)


@pytest.mark.parametrize("case", CHUNKED, ids=lambda case: " ".join(case.recipe))
def test_forwards_of_the_answer_do(case: Case, checkpoints: Checkpoints) -> None:
    whole = answer(case, checkpoints, budget=128, cap=500)
    cut = answer(case, checkpoints, budget=24, cap=whole.nfe - 1)
    assert cut.completion_reason is CompletionReason.NFE_LIMIT
