"""Collecting what happened to each request while it was served."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import attrs
import numpy as np

from diffulex_core.outputs import BlockTrace, GenerationOutputs, ReqStep, ReqTrajectory, TokenLogprob
from diffulex_core.protocols import Foreseeing, Req
from diffulex_core.stop_strings import StopSearch
from diffulex_core.types import (
    Canvas,
    CompletionReason,
    Decision,
    LogProbabilities,
    StepOutput,
    StepPlan,
    Window,
    Windows,
)

_COMPLETE = frozenset({CompletionReason.STOP_EOS, CompletionReason.STOP_TOKEN, CompletionReason.STOP_STRING})


@attrs.frozen(kw_only=True, eq=False)
class Forward:
    """What one step did for each of its requests, read off its plan and output once; times as in `Ticket`.

    Attributes:
        step: number of the engine step.
        began, ended: when.
        windows, decisions: of the requests.
        accepted: positions that took a token, window by window; those of window i end where `bounds[i + 1]` says.
        rows, catch_up, advances: of each span.
        committed: tokens of each answer whose K/V are stored in their final form.
    """

    step: int
    began: float
    ended: float
    windows: Windows
    decisions: Sequence[Decision]
    accepted: Sequence[int]
    bounds: Sequence[int]
    rows: Sequence[int]
    catch_up: Sequence[int]
    advances: Sequence[bool]
    committed: Sequence[int]

    @classmethod
    def of(cls, plan: StepPlan, output: StepOutput, *, began: float, ended: float) -> Forward:
        """That of a plan with at least one window."""
        windows = Windows.of(plan.windows)
        spans, decisions = windows.spans, output.decisions
        taken = np.flatnonzero(np.concatenate([decision.accepted for decision in decisions]))
        sizes = [*accumulate((len(decision.positions) for decision in decisions), initial=0)]
        rows = (spans.end - spans.start).tolist()
        for index, span in spans.special.items():
            rows[index] = span.rows
        return cls(
            step=plan.step,
            began=began,
            ended=ended,
            windows=windows,
            decisions=decisions,
            accepted=np.concatenate([decision.positions for decision in decisions])[taken].tolist(),
            bounds=taken.searchsorted(sizes).tolist(),
            rows=rows,
            catch_up=spans.catch_up.tolist(),
            advances=spans.advances,
            committed=(spans.store_until - windows.prompt_lens).tolist(),
        )

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended - self.began

    def cached(self, at: int) -> int:
        """Tokens of a request that was never fed before which are in its pages already."""
        spans = self.windows.spans
        return max(int(spans.start[at]), int(spans.store_from[at]))


class _Noted(NamedTuple):
    """A `ReqStep` in the making: its fields, until somebody reads the record."""

    step_id: int
    step_time: float
    is_prefill: bool
    num_generated_tokens: int
    rows: int
    catch_up_rows: int
    running_token_ids: tuple[int, ...]
    block_trace: tuple[BlockTrace, ...]


@attrs.define(kw_only=True, eq=False)
class Ticket:
    """One accepted request and its record; times are seconds since the engine started."""

    request: Req
    arrival: float
    deliver: Callable[[ReqTrajectory], None]
    """Gets the record when the request ended."""
    cached_tokens: int = 0
    written: set[int] = attrs.field(factory=set)
    """Positions that were decided."""
    logprobs: dict[int, TokenLogprob] = attrs.field(factory=dict)
    """Of the tokens that positions took last, where the request asks for them."""
    tokens_edited: int = 0
    tokens_committed: int = 0
    admitted: float | None = None
    first_token: float | None = None
    first_commit: float | None = None
    last_token: float | None = None
    preemptions: int = 0
    stops: StopSearch | None = None
    """Looks for the request's stop strings; None where it has none."""
    _steps: list[_Noted] = attrs.field(factory=list, init=False)

    @property
    def steps(self) -> tuple[ReqStep, ...]:
        """Its forwards so far."""
        return tuple([ReqStep(**step._asdict()) for step in self._steps])

    def note(self, forward: Forward, at: int, trace: Canvas | None = None) -> None:
        """Record one forward.

        Args:
            forward: what the step did.
            at: which of its windows is the request's.
            trace: the canvas before the step when per-step traces are kept.
        """
        if self.admitted is None:
            self.admitted = forward.began
            self.cached_tokens = forward.cached(at)
        self.preemptions = forward.windows.preemptions[at]
        accepted = forward.accepted[forward.bounds[at] : forward.bounds[at + 1]]
        before = len(self.written)
        self.written.update(accepted)
        written = len(self.written) - before
        decision = forward.decisions[at]
        if decision.logprobs is not None:
            self.logprobs.update(_logprobs(decision, decision.logprobs))
        self.tokens_edited += len(accepted) - written
        committed = forward.committed[at]
        if committed > self.tokens_committed:
            self.tokens_committed = committed
            if self.first_commit is None:
                self.first_commit = forward.ended
        if written:
            self.last_token = forward.ended
            if self.first_token is None:
                self.first_token = forward.ended
        prefill, rows, catch_up = not forward.advances[at], forward.rows[at], forward.catch_up[at]
        shown = ((), ()) if trace is None else _shown(trace, forward.windows[at])
        self._steps.append(_Noted(forward.step, forward.seconds, prefill, written, rows, catch_up, *shown))

    def trajectory(
        self,
        *,
        req_id: int,
        tokens: tuple[int, ...],
        text: str,
        reason: CompletionReason,
        error: str | None,
        now: float,
    ) -> ReqTrajectory:
        """The finished record."""
        return ReqTrajectory(
            req_id=req_id,
            token_ids=tokens,
            text=text,
            completion_reason=reason,
            error=error,
            trajectory=self.steps,
            prompt_tokens=self.request.prompt_len,
            cached_tokens=self.cached_tokens,
            tokens_written=len(self.written),
            tokens_edited=self.tokens_edited,
            tokens_committed=self.tokens_committed,
            arrival=self.arrival,
            admitted=self.admitted,
            first_token=self.first_token,
            first_commit=self.first_commit,
            last_token=self.last_token,
            finished=now,
            preemptions=self.preemptions,
            steps_saved=self._saved(reason),
            logprobs=self._told(tokens),
        )

    def _saved(self, reason: CompletionReason) -> int | None:
        """Planned forwards that a complete answer did without; None where none are planned."""
        left = self.request.steps_left if isinstance(self.request, Foreseeing) else None
        return 0 if left is not None and reason not in _COMPLETE else left

    def _told(self, tokens: Sequence[int]) -> tuple[TokenLogprob | None, ...] | None:
        """What is known of the answer's tokens; None when nobody asked."""
        if self.request.params.logprobs is None:
            return None
        found = (self.logprobs.get(self.request.prompt_len + at) for at in range(len(tokens)))
        return tuple(
            each if each is not None and each.token_id == token else None
            for each, token in zip(found, tokens, strict=True)
        )


@attrs.frozen(kw_only=True)
class Totals:
    """Running sums over engine steps."""

    steps: int = 0
    prefill_rows: int = 0
    prefill_time: float = 0.0
    decode_rows: int = 0
    decode_time: float = 0.0
    head_rows: int = 0

    def plus(self, plan: StepPlan, output: StepOutput, seconds: float) -> Totals:
        spans = Windows.of(plan.windows).spans
        known = int(spans.catch_up.sum())
        share = known / spans.rows
        return Totals(
            steps=self.steps + 1,
            prefill_rows=self.prefill_rows + known,
            prefill_time=self.prefill_time + seconds * share,
            decode_rows=self.decode_rows + spans.rows - known,
            decode_time=self.decode_time + seconds * (1 - share),
            head_rows=self.head_rows + output.head_rows,
        )

    def outputs(self, trajectories: Sequence[ReqTrajectory], began: float) -> GenerationOutputs:
        """The records with these sums; `began` is when the prompts were handed in."""
        return GenerationOutputs(
            trajectories=tuple(trajectories),
            batch_step_count=self.steps,
            total_time=max((each.finished for each in trajectories), default=began) - began,
            prefill_tokens=self.prefill_rows,
            prefill_time=self.prefill_time,
            decode_rows=self.decode_rows,
            decode_time=self.decode_time,
            head_rows=self.head_rows,
        )


def _logprobs(decision: Decision, told: LogProbabilities) -> Iterator[tuple[int, TokenLogprob]]:
    """Position and record of every token that was taken."""
    for row in np.flatnonzero(decision.accepted).tolist():
        pairs = zip(told.tokens[row].tolist(), told.most[row].tolist(), strict=True)
        yield (
            int(decision.positions[row]),
            TokenLogprob(
                token_id=int(decision.tokens[row]),
                logprob=float(told.chosen[row]),
                top=tuple((token, logprob) for token, logprob in pairs if logprob > -np.inf),
            ),
        )


def _shown(canvas: Canvas, window: Window) -> tuple[tuple[int, ...], tuple[BlockTrace, ...]]:
    """What was fed, and the fed blocks."""
    return tuple(window.span.tokens.tolist()), _blocks(canvas, window)


def _blocks(canvas: Canvas, window: Window) -> tuple[BlockTrace, ...]:
    """The fed blocks as they stood before the step."""
    started = {group.block: "active" for group in window.span.groups}
    states = {**started, **dict(canvas.running_blocks)}
    return tuple(
        BlockTrace(
            block_id=block,
            status=states[block],
            num_mask_tokens=masks,
            progress=1 - masks / canvas.block_size,
        )
        for block, masks in ((block, _masks(canvas, block)) for block in sorted(states))
        if (block + 1) * canvas.block_size <= window.span.end
    )


def _masks(canvas: Canvas, block: int) -> int:
    """Undecided positions of a block; those that the canvas does not reach yet are."""
    begin, end = (max(0, at * canvas.block_size - canvas.start) for at in (block, block + 1))
    return end - begin - int(canvas.decided[begin:end].sum())
