"""Errors, plans and configurations that travel between processes arrive as they left."""

from __future__ import annotations

import pickle

import attrs
import numpy as np
import pytest

from diffulex_core import errors
from diffulex_core.distributed.messages import Failure
from diffulex_core.pattern import Phase
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.types import Decision, SampleGroup, Span, StepOutput, StepPlan, Window

ERRORS = [
    errors.ConfigError(["one.", "two."]),
    errors.IncompatibleError(["one."]),
    errors.PluginError("clash"),
    errors.UnknownNameError("nobody"),
    errors.CheckpointError("somewhere", ["torn", "lost"], owner="a family"),
    errors.InvalidPrompt("7"),
    errors.NonFiniteLogits([3, 4]),
    errors.OutOfPages("5"),
    errors.WorkerError("gone", rank=3, replica=1, exit_code=-9),
    errors.PeerLost("late", rank=2),
    errors.NoProfiler("not configured"),
    errors.EngineClosed("closed"),
    MemoryError("full"),
]


def caught(error: Exception) -> Exception:
    """The error as it is once it was raised."""
    with pytest.raises(type(error)) as info:
        raise error
    return info.value


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_keeps_type_text_fields_and_notes_and_gets_the_traceback(error: Exception) -> None:
    fields = {name: value for name, value in vars(error).items() if name != "__notes__"}
    error.add_note("seen at noon")
    sent = pickle.loads(pickle.dumps(Failure.of(4, caught(error), replica=1, rank=2)))
    assert sent.serial == 4
    arrived = sent.raised("worker 2")
    assert type(arrived) is type(error)
    assert str(arrived) == str(error)
    assert {name: value for name, value in vars(arrived).items() if name != "__notes__"} == fields
    first, second = arrived.__notes__
    assert first == "seen at noon"
    assert second.startswith("Raised in worker 2:\nTraceback")
    assert "in caught" in second


class Refuses(Exception):
    """An error that breaks when it is unpickled."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first + second)


class Stutters(Exception):
    """An error that says its text again whenever it is unpickled."""

    def __init__(self, layer: int | str) -> None:
        super().__init__(f"layer {layer} broke")


@pytest.mark.parametrize(
    ("error", "text"), [(Refuses("no", "way"), "Refuses: noway"), (Stutters(3), "Stutters: layer 3 broke")]
)
def test_an_error_that_cannot_travel_is_told_in_words(error: Exception, text: str) -> None:
    arrived = Failure.of(0, caught(error), replica=1, rank=2).raised("worker 2")
    assert isinstance(arrived, errors.WorkerError)
    assert (arrived.replica, arrived.rank, arrived.exit_code) == (1, 2, None)
    assert text in str(arrived)


def test_plans_and_outputs_arrive_as_they_left() -> None:
    at = np.arange(3)
    group = SampleGroup(block=1, positions=at, rows=at, accept_threshold=0.5, force_one=True)
    span = Span(
        start=2,
        tokens=at,
        catch_up=1,
        store_until=3,
        phase=Phase.DECODE,
        groups=(group,),
        advances=True,
        store_from=2,
        keep=2,
    )
    params = SamplingParams(logit_bias={3: -1.5}, thresholds={"accept_threshold": 0.4}, stop=("x",), seed=7)
    window = Window(request_id=5, span=span, prompt_len=2, page_table=at, params=params, draw=9)
    decision = Decision(positions=at, tokens=at, confidence=np.ones(3, dtype=np.float32), accepted=at > 1, finite=False)
    for value in (StepPlan(step=3, windows=(window,), ended=(1, 2)), StepOutput(decisions=(decision,), head_rows=3)):
        assert _plain(pickle.loads(pickle.dumps(value, protocol=5))) == _plain(value)


def _plain(value: object) -> object:
    return attrs.asdict(
        value, value_serializer=lambda _, __, each: each.tolist() if isinstance(each, np.ndarray) else each
    )  # type: ignore[arg-type]
