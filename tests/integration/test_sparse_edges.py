"""The sparse cache at the ends of its ranges: what is asked for there is served, and nobody else pays for it."""

from __future__ import annotations

from typing import Any

import pytest

from diffulex_core.engine import Diffulex
from diffulex_core.outputs import ReqTrajectory
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.sparse import SparseConfig
from tests.integration.engines import engine, prompt


def params(sparse: SparseConfig | None = None, **settings: Any) -> SamplingParams:
    given = {"temperature": 0.0, "ignore_eos": True, "gen_length": 20, "steps": 20, "block_length": 5, **settings}
    return SamplingParams(**given, sparse=sparse)


def canvas(strategy: str = "llada_canvas", checkpoint: str = "llada", **settings: Any) -> Diffulex:
    return engine(checkpoint, **{"decoding_strategy": strategy, "page_size": 8, **settings})


def rows(answer: ReqTrajectory) -> list[int]:
    return [step.rows for step in answer.trajectory]


@pytest.mark.parametrize("length", [1, 9], ids=["a prompt of one token", "a prompt of nine"])
def test_neighbours_beyond_the_sequence_cost_nothing_however_many_are_asked_for(length: int) -> None:
    """One request must not be able to stop the engine, or to keep it busy for longer than its own rows take."""
    reach = 2 * (length + 15) - 1
    with canvas() as ready:
        answers = ready.generate(
            [prompt(length)] * 4,
            [params(SparseConfig(retention_ratio=0.3, pool_kernel=width)) for width in (reach, 2**31 + 1, 10**30 + 1)]
            + [params()],
        )
    assert [answer.error for answer in answers] == [None] * 4
    assert answers[0].token_ids == answers[1].token_ids == answers[2].token_ids
