"""What a generation returns: one trajectory for each prompt, and metrics that mean what they say.

Times are seconds of the wall clock. A *visible* token is one of the answer; a *written* token is a mask that was
decided, visible or not. TPF is visible tokens per forward.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any, overload

import attrs
import cattrs

from diffulex_core.types import CompletionReason


@attrs.frozen(kw_only=True)
class BlockTrace:
    """State of one running block before a step."""

    block_id: int
    status: str
    num_mask_tokens: int
    progress: float


@attrs.frozen(kw_only=True)
class ReqStep:
    """One forward that a request took part in.

    Attributes:
        step_id: number of the engine step.
        step_time: seconds that the whole engine step took.
        is_prefill: the step fed known tokens only: a chunk of the prompt, or replay after a preemption.
        num_generated_tokens: masks decided.
        rows: rows of the request, and `catch_up_rows` of them were known tokens (prompt, or replay after a preemption).
        running_token_ids: the window as it was fed; empty unless traces are on.
        block_trace: the running blocks as they were fed; empty unless traces are on.
    """

    step_id: int
    step_time: float
    is_prefill: bool
    num_generated_tokens: int
    rows: int
    catch_up_rows: int
    running_token_ids: tuple[int, ...] = ()
    block_trace: tuple[BlockTrace, ...] = ()


@attrs.frozen(kw_only=True)
class TokenLogprob:
    """How probable one token of the answer was in the forward that decided it.

    Attributes:
        token_id: the token.
        logprob: natural logarithm of its probability before temperature, top-p, top-k and min-p; at most 0.
        top: the most probable tokens and their log probabilities, most probable first; equals from the highest id down.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@attrs.frozen(kw_only=True)
class ReqTrajectory:
    """How one prompt was answered.

    Attributes:
        req_id: index of the prompt.
        token_ids: the answer: decided tokens up to, and without, the stop token or limit; before a stop string, the
            fewest that hold the text. Never holds a mask token.
        text: the answer as text, cut at the first stop string.
        completion_reason: why the request ended.
        error: message of the error that ended it, or None.
        trajectory: its forwards in order.
        prompt_tokens: length of the prompt; `cached_tokens` of them were served from the prefix cache.
        tokens_written: positions decided, those past the end of the answer included; `tokens_edited` times one of them
            took another token later, and of `tokens_committed` the K/V were stored in their final form.
        arrival, admitted, first_token, first_commit, last_token, finished: seconds since the engine started; None when
            it never happened. `first_commit` is the forward that stored the first block with tokens of the answer.
        preemptions: times the request lost its pages and was resumed.
        steps_saved: forwards that were planned and not needed, as nothing that they could decide would have been
            visible; None where the strategy plans none ahead.
        logprobs: of each token of the answer; None when the request did not ask for them. An entry is None where the
            strategy took another token than those that the network was asked for.
    """

    req_id: int
    token_ids: tuple[int, ...]
    text: str
    completion_reason: CompletionReason
    error: str | None = None
    trajectory: tuple[ReqStep, ...] = ()
    prompt_tokens: int = 0
    cached_tokens: int = 0
    tokens_written: int = 0
    tokens_edited: int = 0
    tokens_committed: int = 0
    arrival: float = 0.0
    admitted: float | None = None
    first_token: float | None = None
    first_commit: float | None = None
    last_token: float | None = None
    finished: float = 0.0
    preemptions: int = 0
    steps_saved: int | None = None
    logprobs: tuple[TokenLogprob | None, ...] | None = None

    @property
    def nfe(self) -> int:
        """Forwards, prefill included."""
        return len(self.trajectory)

    @property
    def nfe_prefill(self) -> int:
        """Forwards that fed known tokens only."""
        return sum(step.is_prefill for step in self.trajectory)

    @property
    def nfe_decode(self) -> int:
        """Forwards that denoised or stored running blocks."""
        return self.nfe - self.nfe_prefill

    @property
    def tokens_visible(self) -> int:
        return len(self.token_ids)

    @property
    def tokens_discarded(self) -> int:
        """Decided tokens that are not part of the answer."""
        return self.tokens_written - self.tokens_visible

    @property
    def tpf(self) -> float:
        """Visible tokens per decode forward (`nfe_decode`); 0 without one."""
        return self.tokens_visible / self.nfe_decode if self.nfe_decode else 0.0

    @property
    def tpf_total(self) -> float:
        """Visible tokens per forward, prefill included; 0 without one."""
        return self.tokens_visible / self.nfe if self.nfe else 0.0

    @property
    def ttft(self) -> float | None:
        """Seconds from arrival to the first decided token."""
        return None if self.first_token is None else self.first_token - self.arrival

    @property
    def tpot(self) -> float | None:
        """Seconds per token after the first; None below two tokens."""
        if self.first_token is None or self.last_token is None or self.tokens_visible < 2:
            return None
        return (self.last_token - self.first_token) / (self.tokens_visible - 1)

    @property
    def e2e_time(self) -> float:
        """Seconds from arrival to the end."""
        return self.finished - self.arrival

    @property
    def decode_time(self) -> float:
        """Seconds of the engine steps in which it decoded, whole steps whoever else took part."""
        return sum(step.step_time for step in self.trajectory if not step.is_prefill)

    @property
    def queue_time(self) -> float | None:
        """Seconds from arrival to the first forward."""
        return None if self.admitted is None else self.admitted - self.arrival

    @property
    def is_truncated(self) -> bool:
        """The answer ended at a limit rather than where the model or a stop rule ended it."""
        return self.completion_reason in (
            CompletionReason.LENGTH_TOKENS,
            CompletionReason.LENGTH_CONTEXT,
            CompletionReason.NFE_LIMIT,
        )

    @property
    def eos_token_generated(self) -> bool:
        return self.completion_reason is CompletionReason.STOP_EOS

    @property
    def max_new_tokens_reached(self) -> bool:
        return self.completion_reason is CompletionReason.LENGTH_TOKENS

    @property
    def max_model_len_reached(self) -> bool:
        return self.completion_reason is CompletionReason.LENGTH_CONTEXT

    @property
    def max_nfe_reached(self) -> bool:
        return self.completion_reason is CompletionReason.NFE_LIMIT

    @property
    def max_repetition_run_reached(self) -> bool:
        return self.completion_reason is CompletionReason.REPETITION

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        data: dict[str, Any] = cattrs.unstructure(self)
        return data


@attrs.frozen(kw_only=True)
class GenerationOutputs:
    """Trajectories in prompt order, and the engine's totals over the time it took to produce them.

    Attributes:
        trajectories: one for each prompt.
        batch_step_count: engine steps.
        total_time: seconds from the first arrival to the last end.
        prefill_tokens: rows of known tokens that were computed; `prefill_time` is their share of the steps' time.
        decode_rows: the other rows; `decode_time` is their share.
        head_rows: rows that went through the language-model head.
    """

    trajectories: tuple[ReqTrajectory, ...]
    batch_step_count: int = 0
    total_time: float = 0.0
    prefill_tokens: int = 0
    prefill_time: float = 0.0
    decode_rows: int = 0
    decode_time: float = 0.0
    head_rows: int = 0

    def __len__(self) -> int:
        return len(self.trajectories)

    @overload
    def __getitem__(self, index: int) -> ReqTrajectory: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[ReqTrajectory, ...]: ...
    def __getitem__(self, index: int | slice) -> ReqTrajectory | tuple[ReqTrajectory, ...]:
        return self.trajectories[index]

    def __iter__(self) -> Iterator[ReqTrajectory]:
        return iter(self.trajectories)

    @property
    def texts(self) -> list[str]:
        return [each.text for each in self.trajectories]

    @property
    def total_generated_tokens(self) -> int:
        """Visible tokens of all answers."""
        return sum(each.tokens_visible for each in self.trajectories)

    @property
    def decode_tokens(self) -> int:
        """Masks decided, visible or not."""
        return sum(each.tokens_written for each in self.trajectories)

    @property
    def throughput(self) -> float:
        """Visible tokens per second over all prompts together (capacity, not single-request speed)."""
        return _ratio(self.total_generated_tokens, self.total_time)

    @property
    def prefill_throughput(self) -> float:
        """Known tokens per second of prefill time."""
        return _ratio(self.prefill_tokens, self.prefill_time)

    @property
    def decode_throughput(self) -> float:
        """Decided tokens per second of decode time."""
        return _ratio(self.decode_tokens, self.decode_time)

    @property
    def avg_e2e_tps(self) -> float:
        """Mean over requests of visible tokens per second of their own time (single-request feel)."""
        return _mean([_ratio(each.tokens_visible, each.e2e_time) for each in self.trajectories])

    @property
    def avg_decode_tps(self) -> float:
        """Mean over requests that decoded of visible tokens per second of their decode steps."""
        return _mean([_ratio(each.tokens_visible, each.decode_time) for each in self.trajectories if each.nfe_decode])

    @property
    def tpf(self) -> float:
        """Mean over requests that decoded of visible tokens per decode forward."""
        return _mean([each.tpf for each in self.trajectories if each.nfe_decode])

    @property
    def tpf_total(self) -> float:
        """Mean over requests that ran of visible tokens per forward, prefill included."""
        return _mean([each.tpf_total for each in self.trajectories if each.nfe])

    @property
    def nfe(self) -> float:
        """Mean forwards of a request."""
        return _mean([each.nfe for each in self.trajectories])

    @property
    def steps_saved(self) -> float:
        """Mean planned forwards that were not needed, over requests whose strategy plans them."""
        return _mean([each.steps_saved for each in self.trajectories if each.steps_saved is not None])

    @property
    def ttft(self) -> float:
        """Mean seconds to the first token, over requests that have one."""
        return _mean([each.ttft for each in self.trajectories if each.ttft is not None])

    @property
    def tpot(self) -> float:
        """Mean seconds per further token, over requests with at least two."""
        return _mean([each.tpot for each in self.trajectories if each.tpot is not None])

    @property
    def engine_ttft(self) -> float:
        """Mean over requests of their own steps' time up to the first that decided a token; waiting excluded."""
        sums = []
        for each in self.trajectories:
            spent = 0.0
            for step in each.trajectory:
                spent += step.step_time
                if step.num_generated_tokens:
                    sums.append(spent)
                    break
        return _mean(sums)

    @property
    def engine_e2e_time(self) -> float:
        """Sum over requests of their own steps' time; a step of n requests counts n times."""
        return sum(step.step_time for each in self.trajectories for step in each.trajectory)

    def request_metrics(self, index: int) -> dict[str, float]:
        """Numbers of one request: tokens, nfe, steps_saved, decode_steps, tpf, tpf_total, e2e_tps, decode_tps."""
        each = self.trajectories[index]
        return {
            "tokens": each.tokens_visible,
            "nfe": each.nfe,
            "steps_saved": each.steps_saved or 0,
            "decode_steps": each.nfe_decode,
            "tpf": each.tpf,
            "tpf_total": each.tpf_total,
            "e2e_tps": _ratio(each.tokens_visible, each.e2e_time),
            "decode_tps": _ratio(each.tokens_visible, each.decode_time),
        }

    def metrics(self) -> dict[str, float]:
        """All totals and means by name, for tables and logs."""
        return {
            "requests": len(self),
            "total_generated_tokens": self.total_generated_tokens,
            "total_time": self.total_time,
            "throughput": self.throughput,
            "avg_e2e_tps": self.avg_e2e_tps,
            "avg_decode_tps": self.avg_decode_tps,
            "tpf": self.tpf,
            "tpf_total": self.tpf_total,
            "nfe": self.nfe,
            "steps_saved": self.steps_saved,
            "ttft": self.ttft,
            "tpot": self.tpot,
            "batch_step_count": self.batch_step_count,
            "prefill_tokens": self.prefill_tokens,
            "prefill_throughput": self.prefill_throughput,
            "decode_tokens": self.decode_tokens,
            "decode_throughput": self.decode_throughput,
            "decode_rows": self.decode_rows,
            "head_rows": self.head_rows,
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain data; `from_dict` restores an equal value."""
        data: dict[str, Any] = cattrs.unstructure(self)
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> GenerationOutputs:
        return cattrs.structure(data, cls)

    def to_json(self, indent: int | None = None) -> str:
        return json.dumps(self.to_dict(), indent=indent)

    @classmethod
    def from_json(cls, text: str) -> GenerationOutputs:
        return cls.from_dict(json.loads(text))

    def to_benchmark_format(self) -> list[dict[str, Any]]:
        """For each prompt `{text, token_ids, nfe}`."""
        return [{"text": each.text, "token_ids": list(each.token_ids), "nfe": each.nfe} for each in self.trajectories]


def _ratio(amount: float, time: float) -> float:
    return amount / time if time > 0 else 0.0


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else 0.0
