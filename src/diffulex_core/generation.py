"""One call's prompts on their way through an engine: steps, stream events, and the outputs at the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING

import attrs
import numpy as np

from diffulex_core.admission import Prompt
from diffulex_core.errors import RequestError
from diffulex_core.outputs import GenerationOutputs, ReqTrajectory
from diffulex_core.pattern import IntArray
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.tracking import Totals
from diffulex_core.types import Canvas, CompletionReason, FloatArray, StepOutput, StepPlan

if TYPE_CHECKING:
    from diffulex_core.engine import Diffulex

_NO_POSITIONS: IntArray = np.empty(0, dtype=np.int64)
_NO_CONFIDENCE: FloatArray = np.empty(0, dtype=np.float32)
_NO_CANVAS = Canvas(
    start=0,
    tokens=_NO_POSITIONS,
    decided=np.empty(0, dtype=np.bool_),
    committed=0,
    block_size=0,
    running_blocks=(),
)


@attrs.frozen(kw_only=True, eq=False)
class StepResult:
    """What one engine step did.

    Attributes:
        plan, output: the forward and its decisions; both None when there was nothing to do.
        seconds: wall time of the step.
        finished: records of the requests that ended, by engine id (`req_id`); those of `generate` and `stream` go
            there instead.
    """

    plan: StepPlan | None
    output: StepOutput | None
    seconds: float
    finished: tuple[ReqTrajectory, ...]


@attrs.frozen(kw_only=True, eq=False)
class StreamEvent:
    """State of one streamed prompt after a step it took part in, or when it ended without one (refused, aborted).

    Attributes:
        index: which prompt.
        canvas: the answer region; positions that are not decided may still change. Empty for a refused prompt.
        text: text of the decided prefix; before the last event without what may still become a stop string, and without
            half a character at its end.
        newly_decided: [n] positions whose token this step set, anew or in place of another, and `confidence` [n] of
            each.
        trajectory: the finished record in the prompt's last event, None before.
    """

    index: int
    canvas: Canvas
    text: str
    newly_decided: IntArray
    confidence: FloatArray
    trajectory: ReqTrajectory | None


class Generation:
    """Prompts that were handed to an engine together. A context manager; leaving it aborts what is not done.

    Iterate it for `StreamEvent`s, or call `advance()` until `done`; then `outputs` holds the result. The engine may be
    used for other things in between, whoever steps it.
    """

    def __init__(
        self, engine: Diffulex, prompts: Sequence[Prompt], params: Sequence[SamplingParams], *, refuse_alone: bool
    ) -> None:
        """
        Args:
            refuse_alone: record a prompt that cannot be served as an error of its own instead of raising.
        """
        self._engine = engine
        self.count = len(prompts)
        self._index_of: dict[int, int] = {}
        self._done: dict[int, ReqTrajectory] = {}
        self._unseen: dict[int, Canvas] = {}
        """Prompts that ended and whose last event is yet to come, with their last canvas."""
        self._totals = Totals()
        self._began = engine.now()
        with ExitStack() as failing:
            failing.callback(self.close)
            for index, (prompt, each) in enumerate(zip(prompts, params, strict=True)):
                try:
                    self._index_of[engine.add_request(prompt, each, deliver=self._take)] = index
                except RequestError as error:
                    if not refuse_alone:
                        raise
                    self._done[index] = _refused(index, error, engine.now())
                    self._unseen[index] = _NO_CANVAS
            failing.pop_all()

    def __enter__(self) -> Generation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[StreamEvent]:
        while True:
            while self._unseen:
                yield self._last_event(next(iter(self._unseen)))
            if self.done:
                return
            yield from self._events(self.advance())

    @property
    def done(self) -> bool:
        """Whether every prompt has its record."""
        return len(self._done) == self.count

    @property
    def num_done(self) -> int:
        return len(self._done)

    @property
    def visible_tokens(self) -> int:
        """Tokens of the answers that are done."""
        return sum(each.tokens_visible for each in self._done.values())

    @property
    def outputs(self) -> GenerationOutputs:
        """The records in prompt order. Only once `done`."""
        if not self.done:
            raise RuntimeError(f"{self.count - self.num_done} prompts are not done; iterate or advance() first")
        return self._totals.outputs([self._done[i] for i in range(self.count)], self._began)

    def advance(self) -> StepResult:
        """Run one engine step. Its `finished` is empty: records of other requests wait for who steps the engine."""
        result = self._engine.step(collect=False)
        if result.plan is not None and result.output is not None:
            self._totals = self._totals.plus(result.plan, result.output, result.seconds)
        return result

    def close(self) -> None:
        """Abort the requests that are not done."""
        for request_id, index in self._index_of.items():
            if index not in self._done:
                self._engine.abort_request(request_id)

    def _take(self, record: ReqTrajectory) -> None:
        """Keep the record of a request that ended, whoever ended it."""
        index = self._index_of[record.req_id]
        self._done[index] = attrs.evolve(record, req_id=index)
        self._unseen[index], _ = self._engine.peek(record.req_id)

    def _events(self, result: StepResult) -> list[StreamEvent]:
        """One event for each prompt that took part; a list, because the engine may go on while they are looked at."""
        if result.plan is None or result.output is None:
            return []
        events = []
        for window, decision in zip(result.plan.windows, result.output.decisions, strict=True):
            index = self._index_of.get(window.request_id)
            if index is None:
                continue
            newly_decided = decision.positions[decision.accepted]
            confidence = decision.confidence[decision.accepted]
            if index in self._unseen:
                events.append(self._last_event(index, newly_decided, confidence))
                continue
            canvas, text = self._engine.peek(window.request_id)
            events.append(
                StreamEvent(
                    index=index,
                    canvas=canvas,
                    text=text,
                    newly_decided=newly_decided,
                    confidence=confidence,
                    trajectory=None,
                )
            )
        return events

    def _last_event(
        self, index: int, newly_decided: IntArray = _NO_POSITIONS, confidence: FloatArray = _NO_CONFIDENCE
    ) -> StreamEvent:
        return StreamEvent(
            index=index,
            canvas=self._unseen.pop(index),
            text=self._done[index].text,
            newly_decided=newly_decided,
            confidence=confidence,
            trajectory=self._done[index],
        )


def _refused(index: int, error: RequestError, now: float) -> ReqTrajectory:
    return ReqTrajectory(
        req_id=index,
        token_ids=(),
        text="",
        completion_reason=CompletionReason.ERROR,
        error=f"{type(error).__name__}: {error}",
        arrival=now,
        finished=now,
    )
