"""OpenAI's routes: chat completions, completions, models. Streams send committed text only."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack
from itertools import accumulate
from typing import Any, Literal

import attrs
from fastapi import APIRouter, Request
from starlette.responses import Response

from diffulex_serve.engine.messages import Ended, Logprob
from diffulex_serve.http.answers import ChatAnswer, Model, Models, TextAnswer
from diffulex_serve.http.asking import asks_of_chat, asks_of_completion, count_of
from diffulex_serve.http.desk import Desk, Reply
from diffulex_serve.http.document import ENGINE, WORK, answers
from diffulex_serve.http.errors import ApiError, json_response
from diffulex_serve.http.schemas import ChatCompletion, Completion
from diffulex_serve.http.streams import EventStream, interleaved, unless_left
from diffulex_serve.stream.fold import finish_reason, usage
from diffulex_serve.stream.protocol import BlockCommit, End, Error
from diffulex_serve.texts import Texts

UNKNOWN_LOGPROB = -9999.0
"""OpenAI's value for a token that is too improbable to say; here also for one that no forward proposed."""

Kind = Literal["chat", "text"]


def openai_routes(desk: Desk) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["OpenAI"])

    @router.post("/v1/chat/completions", response_model=None, responses=answers(ChatAnswer, *WORK, stream="ChatEvent"))
    async def chat_completions(body: ChatCompletion, request: Request) -> Response:
        """Answer a conversation."""
        return await _answer("chat", body, desk, request, told=bool(body.logprobs))

    @router.post("/v1/completions", response_model=None, responses=answers(TextAnswer, *WORK, stream="TextEvent"))
    async def completions(body: Completion, request: Request) -> Response:
        """Answer one or several prompts."""
        return await _answer("text", body, desk, request, told=body.logprobs is not None)

    @router.get("/v1/models", response_model=None, responses=answers(Models, *ENGINE))
    async def models() -> Response:
        """The one model that there is."""
        return json_response({"object": "list", "data": [_model(desk)]})

    @router.get("/v1/models/{name:path}", response_model=None, responses=answers(Model, 404, *ENGINE))
    async def model(name: str) -> Response:
        """The model, by its name."""
        if name != desk.model:
            raise ApiError(
                404, f"There is no model {name[:200]!r}.", kind="not_found_error", param="model", code="model_not_found"
            )
        return json_response(_model(desk))

    return router


async def _answer(
    kind: Kind, body: ChatCompletion | Completion, desk: Desk, request: Request, *, told: bool
) -> Response:
    writer = _Writer(kind=kind, model=desk.model, texts=desk.texts, told=told, n=body.n or 1)
    stack = AsyncExitStack()
    try:
        stack.enter_context(desk.admit(count_of(body, desk)))
        replies = await unless_left(request, _open(body, desk, stack, writer))
        if not body.stream:
            ends = await unless_left(request, _all(replies))
            content = writer.whole(replies, ends)
            await stack.aclose()
            return json_response(content)
    except BaseException:  # gone clients cancel: the requests leave the engine either way
        await stack.aclose()
        raise
    with_usage = body.stream_options is not None and body.stream_options.include_usage
    return EventStream(_chunks(writer, replies, with_usage=with_usage), stack, seconds=desk.stream_seconds)


async def _open(body: ChatCompletion | Completion, desk: Desk, stack: AsyncExitStack, writer: _Writer) -> list[Reply]:
    asks = await (asks_of_chat(body, desk) if isinstance(body, ChatCompletion) else asks_of_completion(body, desk))
    name = writer.head(chunk=False)["id"]
    return await stack.enter_async_context(desk.open([attrs.evolve(ask, name=name) for ask in asks]))


async def _all(replies: Sequence[Reply]) -> list[Ended]:
    """The ends of all replies, or the first error."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(reply.finish()) for reply in replies]
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]


async def _chunks(
    writer: _Writer, replies: Sequence[Reply], *, with_usage: bool
) -> AsyncGenerator[Mapping[str, Any], None]:
    for index in range(len(replies)):
        if writer.kind == "chat":
            yield writer.chunk(index, {"role": "assistant", "content": ""}, with_usage=with_usage)
    offsets = [0] * len(replies)
    async for index, frame in interleaved(replies):
        match frame.body:
            case BlockCommit() as commit if commit.token_ids or commit.text:
                start, end = commit.start, commit.start + len(commit.token_ids)
                logprobs = writer.logprobs(commit.token_ids, replies[index].fold.logprobs[start:end], offsets[index])
                offsets[index] += sum(len(writer.texts.alone(token)) for token in commit.token_ids)
                yield writer.chunk(index, {"content": commit.text}, logprobs=logprobs, with_usage=with_usage)
            case End() as end_of_answer:
                yield writer.chunk(
                    index, {}, finish=end_of_answer.finish_reason, body=end_of_answer, with_usage=with_usage
                )
            case Error() as error:
                raise ApiError(500, error.message, kind=error.type)
    if with_usage:
        ends = [reply.ended for reply in replies if reply.ended is not None]
        yield {**writer.head(chunk=True), "choices": [], "usage": _usage(ends, writer.n)}


@attrs.define(kw_only=True)
class _Writer:
    """Writes answers as OpenAI does."""

    kind: Kind
    model: str
    texts: Texts
    told: bool
    """Whether log probabilities are wanted."""
    n: int
    """Answers to each prompt."""
    id: str = attrs.field(factory=lambda: uuid.uuid4().hex)
    created: int = attrs.field(factory=lambda: int(time.time()))

    def head(self, *, chunk: bool) -> dict[str, Any]:
        if self.kind == "chat":
            name, prefix = "chat.completion.chunk" if chunk else "chat.completion", "chatcmpl"
        else:
            name, prefix = "text_completion", "cmpl"
        return {"id": f"{prefix}-{self.id}", "object": name, "created": self.created, "model": self.model}

    def chunk(
        self,
        index: int,
        delta: Mapping[str, Any],
        *,
        with_usage: bool,
        logprobs: Mapping[str, Any] | None = None,
        finish: str | None = None,
        body: End | None = None,
    ) -> dict[str, Any]:
        """A part of one answer."""
        content = {"delta": delta} if self.kind == "chat" else {"text": delta.get("content", "")}
        choice = {"index": index, **content, "logprobs": logprobs, "finish_reason": finish}
        if body is not None:
            choice["stop_detail"] = body.stop_detail
        return {**self.head(chunk=True), "choices": [choice], **({"usage": None} if with_usage else {})}

    def whole(self, replies: Sequence[Reply], ends: Sequence[Ended]) -> dict[str, Any]:
        """All answers."""
        choices = []
        for index, (reply, ended) in enumerate(zip(replies, ends, strict=True)):
            text = reply.fold.text
            content = {"message": {"role": "assistant", "content": text, "refusal": None}}
            choices.append(
                {
                    "index": index,
                    **(content if self.kind == "chat" else {"text": text}),
                    "logprobs": self.logprobs(ended.token_ids, reply.fold.logprobs, 0),
                    "finish_reason": finish_reason(ended.reason),
                    "stop_detail": ended.reason,
                }
            )
        return {**self.head(chunk=False), "choices": choices, "usage": _usage(ends, self.n)}

    def logprobs(self, tokens: Sequence[int], known: Sequence[Logprob | None], offset: int) -> Mapping[str, Any] | None:
        """Log probabilities of some tokens, the first at this offset of the text; None where nobody asked."""
        if not self.told:
            return None
        rows = [(self.texts.alone(token), each) for token, each in zip(tokens, known, strict=True)]
        if self.kind == "chat":
            return {"content": [{**self._token(text, each), "top_logprobs": self._top(each)} for text, each in rows]}
        return {
            "tokens": [text for text, _ in rows],
            "token_logprobs": [None if each is None else each.logprob for _, each in rows],
            "top_logprobs": [{entry["token"]: entry["logprob"] for entry in self._top(each)} for _, each in rows],
            "text_offset": list(accumulate((len(text) for text, _ in rows), initial=offset))[: len(rows)],
        }

    def _token(self, text: str, each: Logprob | None) -> dict[str, Any]:
        logprob = UNKNOWN_LOGPROB if each is None else each.logprob
        return {"token": text, "logprob": logprob, "bytes": list(text.encode("utf-8", errors="replace"))}

    def _top(self, each: Logprob | None) -> list[dict[str, Any]]:
        top = () if each is None else each.top
        return [self._token(self.texts.alone(token), Logprob(logprob=logprob)) for token, logprob in top]


def _model(desk: Desk) -> dict[str, Any]:
    info = desk.info
    return {
        "id": desk.model,
        "object": "model",
        "created": desk.created,
        "owned_by": "diffulex",
        "max_model_len": info.max_model_len,
        "family": info.family,
        "strategy": info.strategy,
    }


def _usage(ends: Sequence[Ended], n: int) -> dict[str, Any]:
    """What some answers cost together, `n` to each prompt. A prompt counts once, as OpenAI does."""
    if len(ends) == 1:
        return dict(usage(ends[0]))
    prompt, visible = sum(e.prompt_tokens for e in ends[::n]), sum(len(e.token_ids) for e in ends)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": visible,
        "total_tokens": prompt + visible,
        "prompt_tokens_details": {"cached_tokens": sum(each.cached_tokens for each in ends[::n])},
        "nfe": sum(each.nfe for each in ends),
    }
