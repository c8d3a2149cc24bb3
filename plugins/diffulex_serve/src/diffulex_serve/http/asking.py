"""From the bodies of requests to what is asked of the engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
from pydantic import BaseModel

from diffulex_core.plugin import SamplingParams
from diffulex_serve.http.desk import Ask, Desk
from diffulex_serve.http.errors import ApiError
from diffulex_serve.http.schemas import ChatCompletion, Completion, Generate, Job, OpenAISampling, sampling_params
from diffulex_serve.stream.fold import Wishes
from diffulex_serve.stream.protocol import Detail

_SAMPLING = frozenset(field.name for field in attrs.fields(SamplingParams))


def count_of(body: ChatCompletion | Completion | Job, desk: Desk) -> int:
    """How many answers a body asks for.

    Raises:
        ApiError: more than one request may.
    """
    n = 1 if isinstance(body, Job) else body.n or 1
    count = n if isinstance(body, ChatCompletion) else n * len(prompts_of(body.prompt))
    most = desk.options.limits.max_n
    if count > most:
        raise ApiError(400, f"{count} answers are asked for, but one request may ask for {most}.", param="n")
    return count


async def asks_of_chat(body: ChatCompletion, desk: Desk) -> list[Ask]:
    """What a chat completion asks, an answer for each of `n`.

    Raises:
        ApiError, RequestError: it cannot be done.
    """
    _check_model(body, desk)
    _refuse(
        ("tools", bool(body.tools)),
        ("functions", bool(body.functions)),
        ("response_format", (body.response_format or {}).get("type", "text") != "text"),
    )
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs=true.", param="top_logprobs")
    given = _sampling(body)
    if body.max_completion_tokens is not None:
        given["max_tokens"] = body.max_completion_tokens
    if body.logprobs:
        given["logprobs"] = body.top_logprobs or 0
    params = sampling_params(desk.info.sampling_defaults, given)
    ids = await desk.texts.converse([message.plain() for message in body.messages])
    return _repeated([ids], params, n=body.n or 1, watched=bool(body.stream))


async def asks_of_completion(body: Completion, desk: Desk) -> list[Ask]:
    """What a completion asks: `n` answers for each prompt, those of a prompt next to each other.

    Raises:
        ApiError, RequestError: it cannot be done.
    """
    _check_model(body, desk)
    n = body.n or 1
    _refuse(("echo", bool(body.echo)), ("suffix", bool(body.suffix)), ("best_of", body.best_of not in (None, n)))
    given = _sampling(body)
    if body.logprobs is not None:
        given["logprobs"] = body.logprobs
    params = sampling_params(desk.info.sampling_defaults, given)
    ids = [await ids_of(prompt, desk) for prompt in prompts_of(body.prompt)]
    return _repeated(ids, params, n=n, watched=bool(body.stream))


async def ask_of_generate(body: Generate, desk: Desk) -> Ask:
    """What `/generate` asks.

    Raises:
        ApiError, RequestError: it cannot be done.
    """
    if (body.prompt is None) == (body.messages is None):
        raise ApiError(400, "Give either prompt or messages.", param="prompt")
    params = sampling_params(desk.info.sampling_defaults, _native(body))
    ids: Sequence[int]
    if body.messages is not None:
        ids = await desk.texts.converse([message.plain() for message in body.messages])
    else:
        assert body.prompt is not None
        ids = await ids_of(body.prompt, desk)
    details: dict[str, Detail] = {"events": body.detail, "denoise": "tokens", "block_append": "none"}
    detail = details[body.stream_mode]
    wishes = Wishes(detail=detail, snapshot_every=body.snapshot_every, mask_symbol=body.mask_symbol)
    interval = body.min_interval_ms / 1000
    return Ask(prompt=tuple(ids), params=params, watched=body.stream, wishes=wishes, min_interval=interval)


async def asks_of_job(body: Job, desk: Desk) -> list[Ask]:
    """What a job asks, an answer for each prompt.

    Raises:
        ApiError, RequestError: it cannot be done.
    """
    params = sampling_params(desk.info.sampling_defaults, _native(body))
    ids = [await ids_of(prompt, desk) for prompt in prompts_of(body.prompt)]
    return _repeated(ids, params, n=1, watched=False)


def prompts_of(prompt: str | list[int] | list[str] | list[list[int]]) -> Sequence[str | list[int]]:
    """One or several prompts as a list."""
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt[0], int):
        return [prompt]
    return prompt


async def ids_of(prompt: str | Sequence[int], desk: Desk) -> Sequence[int]:
    """A prompt's token ids.

    Raises:
        InvalidPrompt: it is no text.
    """
    return await desk.texts.encode(prompt) if isinstance(prompt, str) else prompt


def _sampling(body: OpenAISampling) -> dict[str, Any]:
    """The sampling parameters that an OpenAI body gives, but for log probabilities, which its routes spell."""
    for name, value in (("frequency_penalty", body.frequency_penalty), ("presence_penalty", body.presence_penalty)):
        if value:
            raise ApiError(400, f"{name} is not supported; leave it out or give 0.", param=name)
    given = _native(body)
    given.pop("logprobs", None)
    return given


def _native(body: BaseModel) -> dict[str, Any]:
    return {name: value for name, value in body.model_dump(exclude_unset=True).items() if name in _SAMPLING}


def _check_model(body: OpenAISampling, desk: Desk) -> None:
    if body.model is not None and body.model not in (desk.model, desk.info.model):
        raise ApiError(
            404,
            f"There is no model {body.model[:200]!r}; this server has {desk.model!r}.",
            kind="not_found_error",
            param="model",
            code="model_not_found",
        )


def _refuse(*asked: tuple[str, bool]) -> None:
    for name, wanted in asked:
        if wanted:
            raise ApiError(400, f"{name} is not supported by this server; leave it out.", param=name)


def _repeated(prompts: Sequence[Sequence[int]], params: SamplingParams, *, n: int, watched: bool) -> list[Ask]:
    """Each prompt `n` times; with a seed, each time with the next one, as the same would give the same answer."""
    return [
        Ask(prompt=tuple(ids), params=_reseeded(params, index), watched=watched)
        for ids in prompts
        for index in range(n)
    ]


def _reseeded(params: SamplingParams, index: int) -> SamplingParams:
    return params if params.seed is None else attrs.evolve(params, seed=params.seed + index)
