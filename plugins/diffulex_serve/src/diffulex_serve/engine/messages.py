"""What frontend and engine tell each other: frozen values, deltas only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

VERSION = 1
"""Of these messages. Frontend and engine refuse to talk when theirs differ."""


@attrs.frozen(kw_only=True)
class EngineInfo:
    """What an engine is, told once when it is ready.

    Attributes:
        model: as it was named.
        family, strategy: registered names.
        block_size: tokens per block.
        mask_token_id: None for families without one; their canvases show drafts that are not decided.
        max_model_len: most tokens of a prompt and its answer.
        max_num_reqs: requests that run at the same time.
        vocab_size: token ids are below this.
        num_pages: pages of the KV cache.
        logprobs: whether the strategy can tell log probabilities.
        sampling_defaults: what the checkpoint recommends.
        pid: the process that it runs in.
        config: its configuration as `diffulex config explain --json` tells it.
    """

    model: str
    family: str
    strategy: str
    block_size: int
    mask_token_id: int | None
    max_model_len: int
    max_num_reqs: int
    vocab_size: int
    num_pages: int
    logprobs: bool
    sampling_defaults: Mapping[str, Any]
    pid: int
    config: Mapping[str, Any] = attrs.field(factory=dict, repr=False)


@attrs.frozen(kw_only=True)
class Submit:
    """Serve a request; answered by `Accepted` or `Refused`.

    Attributes:
        request_id: any text that no live request has.
        prompt: token ids.
        params: fields of `SamplingParams`.
        watched: send a `Stepped` for each of its forwards; otherwise only the end is told.
    """

    request_id: str
    prompt: tuple[int, ...]
    params: Mapping[str, Any]
    watched: bool = True


@attrs.frozen(kw_only=True)
class Abort:
    """End a request now; answered by `Answered(value=whether it was here)`, after its `Ended`."""

    call: int
    request_id: str


@attrs.frozen(kw_only=True)
class StartProfile:
    """Begin a profiler recording; answered by `Answered` or `CallFailed`. As `Diffulex.start_profile`."""

    call: int
    prefix: str | None = None
    config: Mapping[str, Any] | None = None


@attrs.frozen(kw_only=True)
class StopProfile:
    """End the recording; answered by the paths of its files."""

    call: int


@attrs.frozen(kw_only=True)
class Close:
    """End all requests as aborted and close the engine."""


Command = Submit | Abort | StartProfile | StopProfile | Close


@attrs.frozen(kw_only=True)
class Loading:
    """The engine is not ready yet, and does this."""

    doing: str


@attrs.frozen(kw_only=True)
class Ready:
    """The engine loaded its model and takes commands."""

    info: EngineInfo
    version: int = VERSION


@attrs.frozen(kw_only=True)
class Accepted:
    """A request waits for its first forward."""

    request_id: str


@attrs.frozen(kw_only=True)
class Refused:
    """A request cannot be served.

    Attributes:
        kind: name of the error's class.
        message: what is wrong and what to do.
        user_error: whether the request is at fault, and not the engine.
    """

    request_id: str
    kind: str
    message: str
    user_error: bool = True


@attrs.frozen(kw_only=True)
class Logprob:
    """Log probability of a token in the forward that decided it, and the most probable tokens with theirs."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@attrs.frozen(kw_only=True)
class Stepped:
    """What one forward changed in a request's answer. Positions count from the answer's first token.

    Attributes:
        step: number of the engine step.
        nfe: forwards of the request so far.
        opened: lengths of the blocks that entered behind those before.
        at, tokens: positions that show another token now, ascending, and which.
        confidence: of each, 0 where the forward told none.
        erased: positions that show no token any more, ascending.
        final: so many leading tokens can never change.
        committed: so many leading positions have their K/V stored in final form.
        decode_time: seconds of the forwards so far in which it decoded, whoever shared them.
        logprobs: of each written token, None where it is not known; empty when the request does not ask.
    """

    request_id: str
    step: int
    nfe: int
    opened: tuple[int, ...] = ()
    at: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()
    confidence: tuple[float, ...] = ()
    erased: tuple[int, ...] = ()
    final: int = 0
    committed: int = 0
    decode_time: float = 0.0
    logprobs: tuple[Logprob | None, ...] = ()


@attrs.frozen(kw_only=True)
class Ended:
    """A request is over; nothing more is said about it.

    Attributes:
        reason: value of `CompletionReason`.
        error: the message when the reason is `error`.
        token_ids, text: the answer.
        canvas: all positions behind the prompt, those past the answer too; None where no token is decided.
        logprobs: of each token of the answer; None when the request did not ask.
        prompt_tokens, cached_tokens, nfe, nfe_prefill, tokens_written, tokens_edited, tokens_committed, preemptions,
        steps_saved: as in `ReqTrajectory`.
        queue_time, ttft, tpot, e2e_time, decode_time: seconds, as in `ReqTrajectory`.
    """

    request_id: str
    reason: str
    error: str | None = None
    token_ids: tuple[int, ...] = ()
    text: str = ""
    canvas: tuple[int | None, ...] = ()
    logprobs: tuple[Logprob | None, ...] | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    nfe: int = 0
    nfe_prefill: int = 0
    tokens_written: int = 0
    tokens_edited: int = 0
    tokens_committed: int = 0
    preemptions: int = 0
    steps_saved: int | None = None
    queue_time: float | None = None
    ttft: float | None = None
    tpot: float | None = None
    e2e_time: float = 0.0
    decode_time: float = 0.0


@attrs.frozen(kw_only=True)
class Load:
    """What the engine did last and how full it is; follows every step, and every end outside of one.

    Attributes:
        step: number of the latest engine step, -1 before the first.
        seconds: how long it took.
        requests: that took part in it.
        rows: that it fed.
        live: requests that wait or run.
        pages, free_pages: of the KV cache.
        cached_pages: that hold the beginnings of prompts for others, in use or free.
        stages: seconds of the stages of that step, by name.
    """

    step: int = -1
    seconds: float = 0.0
    requests: int = 0
    rows: int = 0
    live: int = 0
    pages: int = 0
    free_pages: int = 0
    cached_pages: int = 0
    stages: Mapping[str, float] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Answered:
    """The answer to a call."""

    call: int
    value: bool | list[str] | None


@attrs.frozen(kw_only=True)
class CallFailed:
    """A call could not be carried out; the engine goes on. `user_error`: what was asked makes no sense."""

    call: int
    message: str
    user_error: bool = False


@attrs.frozen(kw_only=True)
class Died:
    """The engine cannot go on; every request in it is lost.

    Attributes:
        kind: name of the error's class.
        message: what happened and what to do.
    """

    kind: str
    message: str


Event = Loading | Ready | Accepted | Refused | Stepped | Ended | Load | Answered | CallFailed | Died
