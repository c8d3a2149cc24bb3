"""The loop that owns an engine: commands in, one forward, events out."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from typing import Any, Protocol

import attrs
import numpy as np

from diffulex_core.config.describe import explain
from diffulex_core.engine import Diffulex
from diffulex_core.generation import StepResult
from diffulex_core.outputs import ReqTrajectory, TokenLogprob
from diffulex_core.plugin import (
    Canvas,
    ConfigError,
    Decision,
    DiffulexError,
    EngineConfig,
    IntArray,
    LogProbabilities,
    RequestError,
    SamplingParams,
    StepPlan,
)
from diffulex_serve.engine.deltas import CanvasWatch
from diffulex_serve.engine.messages import (
    Abort,
    Accepted,
    Answered,
    CallFailed,
    Close,
    Command,
    Died,
    Ended,
    EngineInfo,
    Event,
    Load,
    Logprob,
    Ready,
    Refused,
    StartProfile,
    Stepped,
    StopProfile,
    Submit,
)

_log = logging.getLogger(__name__)

_STAGES = ("schedule", "pack", "forward", "sample", "copy", "update", "other")
"""Of a step, in the order of `StepTimes.seconds`."""


class Line(Protocol):
    """The engine's end of the connection to its frontend; used by one thread."""

    def receive(self, *, block: bool) -> Sequence[Command]:
        """All commands that came. With `block` it waits for one, however long, and costs no time meanwhile."""
        ...

    def send(self, events: Sequence[Event]) -> None:
        """Send events, in order; does not wait for anybody to read them."""
        ...


@attrs.define(kw_only=True, eq=False)
class _Live:
    """A request that waits or runs."""

    request_id: str
    watch: CanvasWatch | None
    nfe: int = 0
    decode_time: float = 0.0


class EngineLoop:
    """Serves an engine until it is told to close. Nothing else may use the engine meanwhile."""

    def __init__(self, engine: Diffulex, line: Line) -> None:
        self._engine = engine
        self._line = line
        self._live: dict[int, _Live] = {}
        self._engine_ids: dict[str, int] = {}
        self._ended: list[ReqTrajectory] = []
        """Records that the engine delivered and that nobody was told of."""
        self._events: list[Event] = []
        self._load = Load(pages=engine.cache_pages[0], free_pages=engine.cache_pages[1])
        self._closing = False

    def run(self) -> None:
        """Serve. Returns once it was told to close; the engine stays open.

        Raises:
            DiffulexError, RuntimeError, ...: the engine cannot go on. The frontend was told.
        """
        self._line.send([Ready(info=engine_info(self._engine)), self._load])
        try:
            while not self._closing:
                for command in self._line.receive(block=self._engine.is_finished()):
                    self._obey(command)
                if not self._engine.is_finished() and not self._closing:
                    self._step()
                self._flush()
        except Exception as error:
            # The engine's process ends here; whoever waits must hear of it.
            self._events.append(died(error))
            self._flush()
            raise

    def _flush(self) -> None:
        if self._events:
            self._line.send(self._events)
            self._events = []

    def _obey(self, command: Command) -> None:
        match command:
            case Submit():
                self._submit(command)
            case Abort():
                here = command.request_id in self._engine_ids
                if here:
                    self._engine.abort_request(self._engine_ids[command.request_id])
                    self._tell_ends()
                    self._tell_load()
                self._events.append(Answered(call=command.call, value=here))
            case StartProfile():
                self._call(command)
            case StopProfile():
                self._call(command)
            case Close():
                self._closing = True
                for engine_id in list(self._live):
                    self._engine.abort_request(engine_id)
                self._tell_ends()

    def _submit(self, command: Submit) -> None:
        request_id = command.request_id
        try:
            if request_id in self._engine_ids:
                raise RequestError(f"A request with the id {request_id!r} is being served; choose another id.")
            engine_id = self._engine.add_request(
                command.prompt, SamplingParams(**command.params), deliver=self._ended.append
            )
        except RequestError as error:
            self._events.append(Refused(request_id=request_id, kind=type(error).__name__, message=str(error)))
            return
        except Exception as error:  # noqa: BLE001 - one request must not end the others
            _log.exception("request %s could not be added", request_id)
            kind, message = type(error).__name__, "The engine failed to take the request."
            self._events.append(Refused(request_id=request_id, kind=kind, message=message, user_error=False))
            return
        drafts = self._engine.config.model.mask_token_id is None
        self._engine_ids[request_id] = engine_id
        self._live[engine_id] = _Live(
            request_id=request_id, watch=CanvasWatch(drafts=drafts) if command.watched else None
        )
        self._events.append(Accepted(request_id=request_id))

    def _call(self, command: StartProfile | StopProfile) -> None:
        try:
            if isinstance(command, StartProfile):
                self._engine.start_profile(command.prefix, command.config)
                value: list[str] | None = None
            else:
                value = [str(path) for path in self._engine.stop_profile()]
        except (DiffulexError, OSError, RuntimeError) as error:
            wrong = isinstance(error, ConfigError)
            self._events.append(CallFailed(call=command.call, message=str(error), user_error=wrong))
        else:
            self._events.append(Answered(call=command.call, value=value))

    def _step(self) -> None:
        result = self._engine.step(collect=False)
        if result.plan is not None and result.output is not None:
            for window, decision in zip(result.plan.windows, result.output.decisions, strict=True):
                live = self._live[window.request_id]
                live.nfe += 1
                if live.watch is not None:
                    live.decode_time += result.seconds * window.span.advances
                    self._events.append(self._stepped(window.request_id, live, live.watch, result.plan, decision))
        self._tell_ends()
        self._tell_load(result)

    def _stepped(self, engine_id: int, live: _Live, watch: CanvasWatch, plan: StepPlan, decision: Decision) -> Stepped:
        canvas, final = self._engine.look(engine_id)
        delta = watch.update(canvas)
        rows = _rows_of(delta.written + canvas.start, decision)
        return Stepped(
            request_id=live.request_id,
            step=plan.step,
            nfe=live.nfe,
            opened=delta.opened,
            at=tuple(delta.written.tolist()),
            tokens=tuple(delta.tokens.tolist()),
            confidence=tuple(_share(float(decision.confidence[row])) if row >= 0 else 0.0 for row in rows),
            erased=tuple(delta.erased.tolist()),
            final=len(final),
            committed=canvas.committed,
            decode_time=live.decode_time,
            logprobs=_logprobs(rows, delta.tokens.tolist(), decision, decision.logprobs),
        )

    def _tell_ends(self) -> None:
        for record in self._ended:
            live = self._live.pop(record.req_id)
            del self._engine_ids[live.request_id]
            canvas, _ = self._engine.look(record.req_id)
            self._events.append(ended(live.request_id, record, canvas))
        self._ended.clear()

    def _tell_load(self, result: StepResult | None = None) -> None:
        pages, free = self._engine.cache_pages
        self._load = attrs.evolve(
            self._load,
            live=len(self._live),
            pages=pages,
            free_pages=free,
            cached_pages=self._engine.cached_pages,
        )
        if result is not None and result.plan is not None:
            self._load = attrs.evolve(
                self._load,
                step=result.plan.step,
                seconds=result.seconds,
                requests=len(result.plan.windows),
                rows=result.plan.rows,
                stages=_stages(self._engine),
            )
        self._events.append(self._load)


def _share(confidence: float) -> float:
    """A confidence from 0 to 1; one below 0 is a logarithm, such as the negative entropy of Dream's samplers."""
    return round(math.exp(confidence) if confidence < 0 else confidence, 4)


def engine_info(engine: Diffulex) -> EngineInfo:
    """What the frontend should know of an engine."""
    config = engine.config
    return EngineInfo(
        model=config.model.model,
        family=config.family.name,
        strategy=config.strategy.name,
        block_size=config.decoding.block_size,
        mask_token_id=config.model.mask_token_id,
        max_model_len=config.schedule.max_model_len,
        max_num_reqs=config.schedule.max_num_reqs * config.parallel.data_parallel_size,
        vocab_size=engine.vocab_size,
        num_pages=engine.cache_pages[0],
        logprobs=config.strategy.logprobs,
        sampling_defaults=dict(config.sampling_defaults),
        pid=os.getpid(),
        config=explained(config),
    )


def explained(config: EngineConfig) -> dict[str, Any]:
    """A configuration as `diffulex config explain --json` tells it."""
    return {
        "model_family": config.family.name,
        "decoding_strategy": config.strategy.name,
        "keys": [row.as_json() for row in explain(config)],
        "sampling_defaults": dict(config.sampling_defaults),
        "warnings": list(config.warnings),
    }


def ended(request_id: str, record: ReqTrajectory, canvas: Canvas) -> Ended:
    """The end of a request as its record and its canvas tell it."""
    return Ended(
        request_id=request_id,
        reason=record.completion_reason.value,
        error=record.error,
        token_ids=record.token_ids,
        text=record.text,
        canvas=tuple(
            token if decided else None
            for token, decided in zip(canvas.tokens.tolist(), canvas.decided.tolist(), strict=True)
        ),
        logprobs=None if record.logprobs is None else tuple(map(_logprob, record.logprobs)),
        prompt_tokens=record.prompt_tokens,
        cached_tokens=record.cached_tokens,
        nfe=record.nfe,
        nfe_prefill=record.nfe_prefill,
        tokens_written=record.tokens_written,
        tokens_edited=record.tokens_edited,
        tokens_committed=record.tokens_committed,
        preemptions=record.preemptions,
        steps_saved=record.steps_saved,
        queue_time=record.queue_time,
        ttft=record.ttft,
        tpot=record.tpot,
        e2e_time=record.e2e_time,
        decode_time=record.decode_time,
    )


def died(error: BaseException) -> Died:
    """What the frontend is told of an engine that cannot go on."""
    return Died(kind=type(error).__name__, message=str(error) or type(error).__name__)


def _stages(engine: Diffulex) -> dict[str, float]:
    """Seconds of the stages of the latest step."""
    return {
        name: round(seconds, 7)
        for latest in engine.recent_steps(1)
        for name, seconds in zip(_STAGES, latest.seconds, strict=True)
    }


def _logprob(told: TokenLogprob | None) -> Logprob | None:
    return None if told is None else Logprob(logprob=told.logprob, top=told.top)


def _rows_of(positions: IntArray, decision: Decision) -> list[int]:
    """The decision's row about each absolute position, -1 where it has none."""
    rows = {position: row for row, position in enumerate(decision.positions.tolist())}
    return [rows.get(position, -1) for position in positions.tolist()]


def _logprobs(
    rows: Sequence[int], tokens: Sequence[int], decision: Decision, told: LogProbabilities | None
) -> tuple[Logprob | None, ...]:
    """What a forward told of the tokens that were written; None where another token was taken than it proposed."""
    if told is None:
        return ()
    found: list[Logprob | None] = []
    for row, token in zip(rows, tokens, strict=True):
        if row < 0 or int(decision.tokens[row]) != token:
            found.append(None)
            continue
        pairs = zip(told.tokens[row].tolist(), told.most[row].tolist(), strict=True)
        top = tuple((each, logprob) for each, logprob in pairs if logprob > -np.inf)
        found.append(Logprob(logprob=float(told.chosen[row]), top=top))
    return tuple(found)
