"""What honest clients ask, in the manners of three kinds of clients, and how they read the answers."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import attrs
from benchmarks.serve_load.server import PATIENCE, Server, request

from diffulex_tiny import problems

PROMPTS = 32
MANNERS = ("completions", "append", "events")
"""OpenAI's stream of text; pieces that are final; every event of the stream protocol."""


@attrs.frozen(kw_only=True)
class Question:
    """A streaming request of one manner."""

    manner: str
    body: Mapping[str, Any]

    def as_bytes(self, **changes: Any) -> bytes:
        """The request as it is sent, with these fields of the body changed."""
        path = "/v1/completions" if self.manner == "completions" else "/generate"
        return request("POST", path, json.dumps({**self.body, **changes}).encode())


@attrs.frozen(kw_only=True)
class Outcome:
    """A stream that was read.

    Attributes:
        answer: its text and its tokens, or how many; None where it came to no end.
        tokens: of the answer.
        ttft: seconds from the wish to connect until its first final piece.
        seconds: until its end.
        how: `final`, `error`, a status, `left` by us, or `hung`, `cut` or `closed` by the server.
    """

    answer: tuple[str, Any] | None = None
    tokens: int = 0
    ttft: float | None = None
    seconds: float = 0.0
    how: str


def questions() -> list[Question]:
    """Each prompt in one of the manners."""
    fields = {"temperature": 0.0, "max_tokens": 32, "stream": True}
    of_manner = {
        "completions": {"stream_options": {"include_usage": True}},
        "append": {"stream_mode": "block_append"},
        "events": {"stream_mode": "events"},
    }
    return [
        Question(manner=manner, body={"prompt": each.prompt, **fields, **of_manner[manner]})
        for manner, each in zip(MANNERS * PROMPTS, problems.problems(2, "eval", PROMPTS), strict=False)
    ]


LONG = {"max_tokens": 300, "ignore_eos": True}
"""Changes of a body that make its answer long."""


async def read(server: Server, question: Question, *, leave_after: float | None = None, **changes: Any) -> Outcome:
    """Read a stream to its end, or leave it after so many seconds."""
    began = time.perf_counter()
    taken, take = _Taken(), _READERS[question.manner]

    def outcome(how: str) -> Outcome:
        seconds = time.perf_counter() - began
        if how != "final":
            return Outcome(how=how, ttft=taken.ttft, seconds=seconds)
        return Outcome(answer=taken.answer(), tokens=taken.tokens, ttft=taken.ttft, seconds=seconds, how=how)

    reader, writer = await server.connect()
    try:
        writer.write(question.as_bytes(**changes))
        async with asyncio.timeout(leave_after or PATIENCE):
            status = (await reader.readline()).split()
            if status[1:2] != [b"200"]:
                return outcome(status[1].decode() if status else "closed")
            while line := await reader.readline():
                if line.startswith(b"data: [DONE]"):
                    return outcome("final" if taken.ended else "error")
                if line.startswith(b"data: "):
                    take(taken, line[6:])
                    if taken.ttft is None and taken.texts:
                        taken.ttft = time.perf_counter() - began
        return outcome("cut")
    except TimeoutError:
        return outcome("left" if leave_after else "hung")
    except ConnectionError:
        return outcome("closed")
    finally:
        writer.close()


@attrs.define(kw_only=True)
class _Taken:
    """What was read of a stream."""

    texts: list[str] = attrs.field(factory=list)
    ids: list[int] = attrs.field(factory=list)
    tokens: int = 0
    ttft: float | None = None
    ended: bool = False

    def answer(self) -> tuple[str, Any]:
        """Text, and ids or their number."""
        return "".join(self.texts), tuple(self.ids) or self.tokens

    def append(self, event: Mapping[str, Any]) -> None:
        """Take in a piece."""
        self.texts.append(event["text"])
        self.ids += event["token_ids"]

    def end(self, event: Mapping[str, Any]) -> None:
        """Take in the end, which must be what the pieces are together."""
        self.tokens = len(event["token_ids"])
        self.ended = (self.ids, "".join(self.texts)) == (event["token_ids"], event["text"])


def _take_completions(taken: _Taken, data: bytes) -> None:
    chunk = json.loads(data)
    taken.texts += [choice["text"] for choice in chunk.get("choices", ()) if choice["text"]]
    if chunk.get("usage"):
        taken.tokens, taken.ended = chunk["usage"]["completion_tokens"], True


def _take_append(taken: _Taken, data: bytes) -> None:
    event = json.loads(data)
    match event["event"]:
        case "append":
            taken.append(event)
        case "final":
            taken.end(event)


def _take_events(taken: _Taken, data: bytes) -> None:
    if b'"block_commit"' not in data and b'"end"' not in data:
        return
    event = json.loads(data)
    match event["event"]:
        case "block_commit":
            taken.append(event)
        case "end":
            taken.end(event)


_READERS: Mapping[str, Callable[[_Taken, bytes], None]] = {
    "completions": _take_completions,
    "append": _take_append,
    "events": _take_events,
}
