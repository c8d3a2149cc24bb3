"""The tokens that others' decoders produced, at no more forwards and rows than they took."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import pytest

from diffulex_core.outputs import ReqTrajectory
from diffulex_core.sampling_params import SamplingParams
from tests.integration.engines import engine, vectors


@attrs.frozen(eq=False)
class Recording:
    """A file of recorded cases, and what to set apart from the configuration that it names.

    `slots` are too few for its three cases at once, and enough for any one of them.
    """

    name: str
    settings: Mapping[str, Any] = attrs.field(factory=dict)
    slots: int = 128

    @property
    def content(self) -> dict[str, Any]:
        return vectors(self.name)

    @property
    def cases(self) -> list[dict[str, Any]]:
        cases: list[dict[str, Any]] = self.content["cases"]
        return cases


RECORDINGS = (
    Recording("llada-d2f"),
    Recording("dream-d2f"),
    # Its recorder accepted at 0.95, whatever its configuration said.
    Recording("sdar-b4", {"accept_threshold": 0.95}),
    Recording("llada2-b1", slots=96),
    Recording("llada2-b3"),
    Recording("llada2-edit"),
    Recording("llada2-dmax"),
)

EACH_CASE = [
    pytest.param(recording, case, id=f"{recording.name}-prompt{len(case['prompt'])}")
    for recording in RECORDINGS
    for case in recording.cases
]
EACH_RECORDING = pytest.mark.parametrize("recording", RECORDINGS, ids=lambda recording: recording.name)


def ask(recording: Recording, cases: list[dict[str, Any]], **settings: Any) -> list[ReqTrajectory]:
    content = recording.content
    with engine(content["checkpoint"], **{**content["config"], **recording.settings, **settings}) as ready:
        params = [SamplingParams(**content["sampling"], max_tokens=len(case["tokens"])) for case in cases]
        return list(ready.generate([case["prompt"] for case in cases], params))


def forwards(config: Mapping[str, Any], case: Mapping[str, Any]) -> int:
    """What a case costs here: the reference spends a forward more on a prompt that ends on a block boundary, and, where
    one block runs at a time, one on storing each block but the last."""
    block, prompt = config["block_size"], len(case["prompt"])
    saved = prompt % block == 0
    if config["buffer_size"] == 1:
        saved += -(-(prompt + len(case["tokens"])) // block) - prompt // block - 1
    # Where tokens are revised, it took an answer for done one forward after nothing in it could change any more.
    saved += config.get("sampling_mode") == "edit"
    return int(case["reference_forwards"]) - saved


@pytest.mark.parametrize(("recording", "case"), EACH_CASE)
@pytest.mark.parametrize("backend", ["torch_cpu", "torch_ref"])
def test_recorded_tokens_are_reproduced_one_by_one(recording: Recording, case: dict[str, Any], backend: str) -> None:
    [answer] = ask(recording, [case], attn_impl=backend)
    assert list(answer.token_ids) == case["tokens"]
    config = recording.content["config"]
    assert sum(step.rows for step in answer.trajectory) <= case["reference_rows"]
    assert answer.nfe == forwards(config, case)


@pytest.mark.parametrize(
    "settings",
    [{}, {"max_num_batched_tokens": 64}, {"page_size": 8}, {"page_size": 32}, {"max_num_reqs": 2}],
    ids=["batched", "small budget", "small pages", "large pages", "two at a time"],
)
@EACH_RECORDING
def test_recorded_tokens_do_not_depend_on_the_schedule(recording: Recording, settings: dict[str, Any]) -> None:
    answers = ask(recording, recording.cases, **settings)
    assert [list(answer.token_ids) for answer in answers] == [case["tokens"] for case in recording.cases]


@EACH_RECORDING
def test_recorded_tokens_survive_preemption(recording: Recording) -> None:
    num_pages = recording.slots // recording.content["config"]["page_size"]
    answers = ask(recording, recording.cases, num_pages=num_pages)
    assert sum(answer.preemptions for answer in answers) > 0
    assert [list(answer.token_ids) for answer in answers] == [case["tokens"] for case in recording.cases]


def test_storing_a_block_while_the_next_one_starts_saves_a_fifth_of_the_forwards() -> None:
    recording = next(recording for recording in RECORDINGS if recording.name == "llada2-b1")
    spent = sum(answer.nfe for answer in ask(recording, recording.cases))
    assert spent <= 0.82 * sum(case["reference_forwards"] for case in recording.cases)
