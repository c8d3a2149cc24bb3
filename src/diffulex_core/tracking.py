"""Collecting what happened to each request while it was served."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

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
)

_COMPLETE = frozenset({CompletionReason.STOP_EOS, CompletionReason.STOP_TOKEN, CompletionReason.STOP_STRING})


@attrs.define(kw_only=True, eq=False)
class Ticket:
    """One accepted request and its record; times are seconds since the engine started."""

    request: Req
    arrival: float
    deliver: Callable[[ReqTrajectory], None]
    """Gets the record when the request ended."""
    cached_tokens: int = 0
    steps: list[ReqStep] = attrs.field(factory=list)
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

    def note(
        self, window: Window, decision: Decision, *, step: int, began: float, ended: float, trace: Canvas | None
    ) -> None:
        """Record one forward.

        Args:
            trace: the canvas before the step when per-step traces are kept.
        """
        span = window.span
        if self.admitted is None:
            self.admitted = began
            self.cached_tokens = max(span.start, span.store_from)
        self.preemptions = window.preemptions
        accepted = decision.positions[decision.accepted].tolist()
        before = len(self.written)
        self.written.update(accepted)
        written = len(self.written) - before
        if decision.logprobs is not None:
            self.logprobs.update(_logprobs(decision, decision.logprobs))
        self.tokens_edited += len(accepted) - written
        self.tokens_committed = max(self.tokens_committed, span.store_until - self.request.prompt_len)
        if self.tokens_committed and self.first_commit is None:
            self.first_commit = ended
        if written:
            self.first_token = ended if self.first_token is None else self.first_token
            self.last_token = ended
        self.steps.append(
            ReqStep(
                step_id=step,
                step_time=ended - began,
                is_prefill=not span.advances,
                num_generated_tokens=written,
                rows=span.rows,
                catch_up_rows=span.catch_up,
                running_token_ids=() if trace is None else tuple(span.tokens.tolist()),
                block_trace=() if trace is None else _blocks(trace, window),
            )
        )

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
            trajectory=tuple(self.steps),
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
        known = sum(window.span.catch_up for window in plan.windows)
        share = known / plan.rows
        return Totals(
            steps=self.steps + 1,
            prefill_rows=self.prefill_rows + known,
            prefill_time=self.prefill_time + seconds * share,
            decode_rows=self.decode_rows + plan.rows - known,
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
