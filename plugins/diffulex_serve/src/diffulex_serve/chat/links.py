"""Who answers in a conversation: a server, or an engine in this process. Both tell events of the stream protocol."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Protocol

import httpx

from diffulex_core.plugin import DiffulexError, RequestError
from diffulex_serve.engine.client import Client
from diffulex_serve.http.asking import ask_of_generate
from diffulex_serve.http.desk import Desk
from diffulex_serve.http.errors import ApiError
from diffulex_serve.http.schemas import Generate
from diffulex_serve.options import LimitsSection, ServeOptions
from diffulex_serve.texts import Texts

Event = Mapping[str, Any]
_CONNECT_SECONDS = 10.0


class ChatFailed(DiffulexError):
    """There is no answer."""


class Link(Protocol):
    """Something that answers."""

    async def meet(self) -> Mapping[str, Any]:
        """What answers: `model`, `family` and `strategy`.

        Raises:
            ChatFailed: nobody does.
        """
        ...

    def events(self, body: Mapping[str, Any]) -> AsyncGenerator[Event, None]:
        """The events of an answer to a body of `/generate`; leaving ends it.

        Raises:
            ChatFailed: there is no answer, or not all of it.
        """
        ...

    async def close(self) -> None:
        """Let go of what answers."""
        ...


class RemoteLink:
    """A server."""

    def __init__(self, url: str, *, api_key: str | None, transport: httpx.AsyncBaseTransport | None = None) -> None:
        """`transport`: how to reach it; None = over the network.

        Raises:
            ChatFailed: the URL is none.
        """
        self._url = url
        try:
            self._client = httpx.AsyncClient(
                base_url=url,
                headers={} if api_key is None else {"Authorization": f"Bearer {api_key}"},
                timeout=httpx.Timeout(_CONNECT_SECONDS, read=None),
                transport=transport,
            )
        except httpx.InvalidURL as error:
            raise self._lost(error) from error

    async def meet(self) -> Mapping[str, Any]:
        try:
            response = await self._client.get("/version")
            served: Mapping[str, Any] = json.loads(_good(response.status_code, response.text))
        except (httpx.HTTPError, json.JSONDecodeError) as error:
            raise self._lost(error) from error
        return served

    async def events(self, body: Mapping[str, Any]) -> AsyncGenerator[Event, None]:
        begun = False
        try:
            async with self._client.stream("POST", "/generate", json=body) as response:
                if response.status_code != httpx.codes.OK:
                    _good(response.status_code, (await response.aread()).decode(errors="replace"))
                async for line in response.aiter_lines():
                    data = line.removeprefix("data: ")
                    if data == "[DONE]":
                        return
                    if data:
                        event = json.loads(data)
                        begun = True
                        yield event
        except (httpx.HTTPError, json.JSONDecodeError) as error:
            raise self._broken() if begun else self._lost(error) from error
        raise self._broken()

    async def close(self) -> None:
        await self._client.aclose()

    def _broken(self) -> ChatFailed:
        return ChatFailed(f"The server at {self._url} broke off its answer. Is it still running?")

    def _lost(self, error: Exception) -> ChatFailed:
        about = str(error) or type(error).__name__
        return ChatFailed(
            f"The server at {self._url} does not answer as one of diffulex: {about}. Start one with `diffulex serve`, "
            "say where it is with --url, or chat without one with --model."
        )


def _good(status: int, text: str) -> str:
    """The text of a response that is no error.

    Raises:
        ChatFailed: it is one.
    """
    if status == httpx.codes.OK:
        return text
    try:
        message = str(json.loads(text)["error"]["message"])
    except (json.JSONDecodeError, KeyError, TypeError):
        message = f"The server answers with status {status}."
    if status == httpx.codes.UNAUTHORIZED:
        message += " Here that is --api-key, or DIFFULEX_SERVE__API_KEY."
    raise ChatFailed(message)


class InlineLink:
    """An engine in this process."""

    def __init__(self, client: Client, texts: Texts, *, model: str) -> None:
        """`client` is started by `meet` and closed by `close`, as is `texts`."""
        self._client = client
        self._texts = texts
        options = ServeOptions(limits=LimitsSection(request_timeout=None))
        self._desk = Desk(client, texts, options, model=model)

    async def meet(self) -> Mapping[str, Any]:
        info = await self._client.start()
        return {"model": self._desk.model, "family": info.family, "strategy": info.strategy}

    async def events(self, body: Mapping[str, Any]) -> AsyncGenerator[Event, None]:
        try:
            with self._desk.admit(1):
                ask = await ask_of_generate(Generate.model_validate(body), self._desk)
                async with self._desk.open([ask]) as [reply]:
                    async for frame in reply:
                        yield frame.as_json()
        except (ApiError, RequestError) as error:
            raise ChatFailed(str(error)) from error

    async def close(self) -> None:
        await self._client.close()
        self._texts.close()
