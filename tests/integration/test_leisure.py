"""What is left to do of a step is done while the device works on the next one, before its results are waited for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import pytest
from torch import Tensor

from diffulex_core.engine import Diffulex
from diffulex_core.profiling.stages import StageClock
from diffulex_core.protocols import PartwiseSampler
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.types import Decision, SamplingBatch
from tests.integration.engines import engine, prompt

SETTINGS: dict[str, Any] = {"decoding_strategy": "multi_bd", "block_size": 8, "page_size": 8, "buffer_size": 2}


@attrs.frozen
class Watching:
    """A sampler that notes how many steps each request's record has when the device is waited for."""

    inner: PartwiseSampler
    engine: Diffulex
    seen: list[list[int]]

    def sample(self, logits: Tensor, batch: SamplingBatch) -> Sequence[Decision]:
        return self.decide(self.score(logits, batch), batch)

    def score(self, logits: Tensor, batch: SamplingBatch) -> Tensor:
        return self.inner.score(logits, batch)

    def decide(self, scored: Tensor, batch: SamplingBatch) -> Sequence[Decision]:
        self.seen.append(recorded(self.engine))
        return self.inner.decide(scored, batch)


def recorded(ready: Diffulex) -> list[int]:
    """Steps in the record of each request that goes on."""
    return [len(ticket.steps) for ticket in vars(ready)["_tickets"].values()]


def watch(ready: Diffulex) -> list[list[int]]:
    """What `Watching` sees from now on."""
    seen = list[list[int]]()
    runner = vars(ready._open.runner)["_runner"]
    parts = vars(runner)
    watching = Watching(parts["_partwise"], ready, seen)
    parts.update(_partwise=watching, _sampler=watching, _selecting=None)
    return seen


def test_records_are_written_while_the_device_works_on_the_next_step() -> None:
    with engine("llada2", **SETTINGS) as ready:
        seen = watch(ready)
        for salt in range(2):
            ready.add_request(prompt(9, salt), SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=24))
        for step in range(4):
            ready.step()
            assert recorded(ready) == [step, step]
            assert seen[-1] == [step, step]


@pytest.mark.parametrize("aborted", [False, True])
def test_whoever_ends_has_all_steps_in_its_record(aborted: bool) -> None:
    with engine("llada2", **SETTINGS) as ready:
        asked = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=8)
        first = ready.add_request(prompt(9), asked)
        ready.add_request(prompt(9, 1), attrs.evolve(asked, max_tokens=24))
        steps, finished = 0, ()
        while not finished:
            finished = ready.step().finished
            steps += 1
            if aborted:
                ready.abort_request(first)
        assert [record.req_id for record in finished] == [first]
        assert len(finished[0].trajectory) == finished[0].nfe == (1 if aborted else steps)
        assert recorded(ready) == [steps - 1]


def test_a_stage_that_pauses_is_not_charged_for_what_happens_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("diffulex_core.profiling.stages.perf_counter", lambda: now[0])
    clock = StageClock(("one", "two"))
    for stage, seconds in (("one", 1.0), ("two", 2.0), ("one", 4.0)):
        clock.begin(stage)
        now[0] += seconds
        clock.pause()
        now[0] += 100.0
    assert clock.finish() == (5.0, 2.0)
