"""The events of streams, for the OpenAPI document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import NoneType
from typing import Any, Literal, get_args, get_type_hints

import attrs
from pydantic import BaseModel, ConfigDict, create_model

from diffulex_serve.http.answers import Answer, ChatLogprobs, ErrorBody, Finish, Generated, TextLogprobs, Usage
from diffulex_serve.stream.protocol import Body, Frame


class Window(Answer):
    """After a step, all positions from where the one before became final (`denoise`)."""

    event: Literal["buffer_snapshot"]
    id: str
    token_offset: int
    absolute_start: int
    absolute_end: int
    text: str
    token_ids: list[int | None]
    nfe: int
    engine_decode_time_s: float
    engine_decode_tokens: int
    engine_decode_tps: float
    finished: Literal[False]


class Append(Answer):
    """A piece of the answer that is final (`block_append`)."""

    event: Literal["append"]
    id: str
    token_offset: int
    text: str
    token_ids: list[int]
    nfe: int
    engine_decode_time_s: float
    engine_decode_tokens: int
    engine_decode_tps: float
    finished: Literal[False]


class Final(Generated):
    """The whole answer, last in `denoise` and `block_append`."""

    event: Literal["final"]
    finished: Literal[True]


class Failed(Answer):
    """The last event of an answer that failed, in `denoise` and `block_append`."""

    event: Literal["error"]
    id: str
    message: str


class Delta(Answer):
    """What is added to a message."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(Answer):
    """A piece of one answer."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: Finish | None
    stop_detail: str | None = None


class ChatChunk(Answer):
    """A piece of the answers to a conversation."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class TextChunkChoice(Answer):
    """A piece of one answer."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Finish | None
    stop_detail: str | None = None


class TextChunk(Answer):
    """A piece of the answers to prompts."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChunkChoice]
    usage: Usage | None = None


def protocol_events() -> tuple[type[BaseModel], ...]:
    """The events of the diffusion stream protocol, as its values say they are."""
    return tuple(_model_of(cls) for cls in get_args(Body))


def streamed() -> Mapping[str, tuple[type[BaseModel], ...]]:
    """What each stream sends, by the name of the union of its events in the document."""
    return {
        "GenerateEvent": (Window, Append, Final, Failed, *protocol_events()),
        "ChatEvent": (ChatChunk, ErrorBody),
        "TextEvent": (TextChunk, ErrorBody),
    }


def _model_of(cls: type[Any]) -> type[BaseModel]:
    """An event's fields, and those of the frame around it."""
    around = {name: field for name, field in _fields(Frame) if name != "body"}
    fields: Any = {"v": (Literal[1], ...), "event": (Literal[cls.event], ...), **around, **dict(_fields(cls))}
    model: type[BaseModel] = create_model(
        f"{cls.__name__}Event", __config__=ConfigDict(extra="forbid"), __doc__=cls.__doc__, **fields
    )
    return model


def _fields(cls: type[Any]) -> Iterator[tuple[str, tuple[Any, Any]]]:
    hints = get_type_hints(cls)
    for field in attrs.fields(cls):
        kind = Usage if field.name == "usage" else hints[field.name]
        yield field.name, (kind, None if NoneType in get_args(kind) else ...)
