"""The routes of our own: `/generate` in its three manners, texts and tokens, requests, the profiler."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from diffulex_core.plugin import DiffulexError
from diffulex_serve.engine.messages import Ended
from diffulex_serve.http.answers import Aborted, Done, Generated, Recorded, Text, Tokens
from diffulex_serve.http.asking import ask_of_generate
from diffulex_serve.http.desk import Desk, Reply
from diffulex_serve.http.document import ENGINE, WORK, answers
from diffulex_serve.http.errors import ApiError, as_api_error, json_response
from diffulex_serve.http.schemas import Detokenize, Generate, Profile, Tokenize
from diffulex_serve.http.streams import EventStream, unless_left
from diffulex_serve.stream.fold import finish_reason, usage
from diffulex_serve.stream.protocol import BlockCommit
from diffulex_serve.texts import Texts


def native_routes(desk: Desk) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["Answers with their diffusion"])

    @router.post("/generate", response_model=None, responses=answers(Generated, *WORK, stream="GenerateEvent"))
    async def generate(body: Generate, request: Request) -> Response:
        """Answer a prompt; streams show the canvas (`denoise`), final text (`block_append`) or all (`events`)."""
        stack = AsyncExitStack()
        try:
            stack.enter_context(desk.admit(1))
            reply = await unless_left(request, _open(body, desk, stack))
            if not body.stream:
                ended = await unless_left(request, reply.finish())
                content = answer(reply, ended, desk.texts)
                await stack.aclose()
                return json_response(content)
        except BaseException:  # gone clients cancel: the request leaves the engine either way
            await stack.aclose()
            raise
        match body.stream_mode:
            case "events":
                return EventStream(_events(reply), stack, seconds=desk.stream_seconds)
            case "block_append":
                return EventStream(_appended(reply, desk.texts), stack, seconds=desk.stream_seconds)
            case "denoise":
                snapshots = _snapshots(reply, desk.texts, body.mask_symbol)
                return EventStream(snapshots, stack, seconds=desk.stream_seconds)

    @router.delete("/v1/requests/{request_id}", response_model=None, responses=answers(Aborted, *ENGINE))
    async def abort(request_id: str) -> Response:
        """End a request now, by the `id` of its answer; whoever waits for it gets what is final, and `abort` as why."""
        return json_response({"id": request_id[:200], "aborted": await desk.abort(request_id)})

    @router.post("/tokenize", response_model=None, responses=answers(Tokens, 400, *ENGINE))
    async def tokenize(body: Tokenize) -> Response:
        """The token ids of a prompt, or of a conversation as the model would read it."""
        if (body.prompt is None) == (body.messages is None):
            raise ApiError(400, "Give either prompt or messages.", param="prompt")
        if body.prompt is not None:
            ids = await desk.texts.encode(body.prompt)
        else:
            assert body.messages is not None
            ids = await desk.texts.converse([message.plain() for message in body.messages])
        return json_response({"tokens": ids, "count": len(ids), "max_model_len": desk.info.max_model_len})

    @router.post("/detokenize", response_model=None, responses=answers(Text, 400))
    async def detokenize(body: Detokenize) -> Response:
        """The text of token ids."""
        return json_response({"prompt": desk.texts.spell(skip_special_tokens=body.skip_special_tokens)(body.tokens)})

    if desk.options.security.enable_profiling:

        @router.post("/start_profile", response_model=None, responses=answers(Done, 400, 409, *ENGINE))
        async def start_profile(body: Profile | None = None) -> Response:
            """Begin a profiler recording, in place of one that runs.

            `profiler_config` holds keys of the configuration's `profiler_config`, in place of the engine's own.
            """
            asked = body or Profile()
            await desk.client.start_profile(asked.profile_prefix, asked.profiler_config)
            return json_response({"status": "ok"})

        @router.post("/stop_profile", response_model=None, responses=answers(Recorded, 409, *ENGINE))
        async def stop_profile() -> Response:
            """End the recording; the paths of its files, on the engine's machine."""
            return json_response({"status": "ok", "files": await desk.client.stop_profile()})

    return router


async def _open(body: Generate, desk: Desk, stack: AsyncExitStack) -> Reply:
    [reply] = await stack.enter_async_context(desk.open([await ask_of_generate(body, desk)]))
    return reply


def answer(reply: Reply, ended: Ended, texts: Texts) -> dict[str, Any]:
    """An answer as `/generate` and jobs tell it."""
    decided = [token for token in ended.canvas if token is not None]
    told = reply.fold.logprobs if ended.logprobs is not None else None
    return {
        "id": reply.request_id,
        "text": reply.fold.text,
        "token_ids": ended.token_ids,
        "full_text": texts.spell(skip_special_tokens=False)(decided),
        "full_token_ids": ended.canvas,
        "nfe": ended.nfe,
        **_speed(ended.decode_time, len(ended.token_ids)),
        "finish_reason": finish_reason(ended.reason),
        "stop_detail": ended.reason,
        "usage": dict(usage(ended)),
        **({} if told is None else {"logprobs": [None if e is None else [e.logprob, e.top] for e in told]}),
    }


def _speed(spent: float, tokens: int) -> dict[str, Any]:
    return {
        "engine_decode_time_s": spent,
        "engine_decode_tokens": tokens,
        "engine_decode_tps": tokens / spent if spent > 0 else 0.0,
    }


async def _events(reply: Reply) -> AsyncGenerator[dict[str, Any], None]:
    try:
        async for frame in reply:
            yield frame.as_json()
    except (ApiError, DiffulexError) as error:
        told = as_api_error(error)
        for frame in reply.fold.fail(told.message, told.kind):
            yield frame.as_json()


async def _appended(reply: Reply, texts: Texts) -> AsyncGenerator[dict[str, Any], None]:
    """What is final, as it becomes final; then the whole."""
    try:
        async for frame in reply:
            if isinstance(frame.body, BlockCommit):
                yield {
                    "event": "append",
                    "id": frame.id,
                    "token_offset": frame.body.start,
                    "text": frame.body.text,
                    "token_ids": frame.body.token_ids,
                    "nfe": frame.nfe,
                    **_speed(reply.fold.decode_time, reply.fold.committed),
                    "finished": False,
                }
        yield _last(reply, texts)
    except (ApiError, DiffulexError) as error:
        yield _failed(reply, as_api_error(error).message)


async def _snapshots(reply: Reply, texts: Texts, mask_symbol: str) -> AsyncGenerator[dict[str, Any], None]:
    """After each step the window from where the snapshot before became final: what changed lies in it."""
    fold, begin, told = reply.fold, 0, 0
    try:
        async for frame in reply:
            if reply.ended is not None or fold.steps == told:
                continue
            told = fold.steps
            shown = fold.shown(begin)
            yield {
                "event": "buffer_snapshot",
                "id": frame.id,
                "token_offset": begin,
                "absolute_start": fold.prompt_tokens + begin,
                "absolute_end": fold.prompt_tokens + fold.length,
                "text": "".join(mask_symbol if token is None else texts.alone(token) for token in shown),
                "token_ids": shown,
                "nfe": frame.nfe,
                **_speed(fold.decode_time, fold.committed),
                "finished": False,
            }
            begin = fold.committed
        yield _last(reply, texts)
    except (ApiError, DiffulexError) as error:
        yield _failed(reply, as_api_error(error).message)


def _last(reply: Reply, texts: Texts) -> dict[str, Any]:
    assert reply.ended is not None
    if reply.ended.reason == "error":
        return _failed(reply, reply.ended.error or "The engine failed.")
    return {"event": "final", **answer(reply, reply.ended, texts), "finished": True}


def _failed(reply: Reply, message: str) -> dict[str, Any]:
    return {"event": "error", "id": reply.request_id, "message": message}
