"""What every request passes: an id and a line in the log, the key, and a body of bounded size."""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import time
import uuid
from collections.abc import Mapping
from typing import Any

from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from diffulex_serve.http.errors import ApiError
from diffulex_serve.http.metrics import Metrics
from diffulex_serve.journal import entry

_log = logging.getLogger("diffulex_serve.access")
_errors = logging.getLogger("diffulex_serve.errors")

OPEN_ROUTES = frozenset({"/health", "/v1/health"})
PROBES = frozenset({"/health", "/v1/health", "/ready", "/metrics"})
"""Asked all the time; only logs of the level debug tell."""
LONGEST_LOGGED = 200
"""Characters of a path that logs tell."""
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RequestLog:
    """Gives every request an id, logs its end, and turns what nobody expected into a plain 500."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = _header(scope, b"x-request-id") or ""
        request_id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        began, status = time.monotonic(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
            await send(message)

        with entry(request_id) as facts:
            try:
                await self._app(scope, receive, sending)
            except Exception:  # noqa: BLE001 - the boundary of a request, which reports it
                _errors.exception("%s %s failed", scope["method"], scope["path"])
                if not status:
                    error = ApiError(500, "The server failed. Its log says more.", kind="server_error")
                    await error.response()(scope, receive, sending)
            finally:
                route = scope.get("route")
                self._metrics.http.labels(route.path if isinstance(route, Route) else "other", str(status)).inc()
                _tell(scope, status, round(time.monotonic() - began, 4), facts)


def _tell(scope: Scope, status: int, seconds: float, facts: Mapping[str, Any]) -> None:
    """Write a request's line: how it ended, and what is known of its answers."""
    level = logging.DEBUG if scope["path"] in PROBES else logging.INFO
    method, path = scope["method"][:LONGEST_LOGGED], scope["path"][:LONGEST_LOGGED]
    told = {"method": method, "path": path, "status": status, "seconds": seconds, **facts}
    answers = " ".join(f"{name}={value}" for name, value in facts.items())
    path = path.encode("unicode_escape").decode()  # nobody else ends our lines
    line = f"{method} {path} {status} in {seconds:.3f} s{': ' + answers if answers else ''}"
    _log.log(level, "%s", line, extra={"facts": told})


class ApiKey:
    """Lets nobody in without the key, but for open routes; takes the same time for every wrong key."""

    def __init__(self, app: ASGIApp, *, key: str, open_routes: frozenset[str] = OPEN_ROUTES) -> None:
        self._app = app
        self._key = key.encode()
        self._open = open_routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in self._open and not self._knows(scope):
            error = ApiError(
                401,
                "The API key is missing or wrong. Send it as 'Authorization: Bearer KEY'.",
                kind="authentication_error",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
            await error.response()(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _knows(self, scope: Scope) -> bool:
        scheme, _, given = (_header(scope, b"authorization") or "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._key)


class BodyLimit:
    """Reads the body before anything else happens, so that no route ever sees one that is too large or too slow."""

    def __init__(self, app: ASGIApp, *, most: int, seconds: float) -> None:
        self._app = app
        self._most = most
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self._seconds):
                body = await self._read(scope, receive)
        except TimeoutError:
            await ApiError(408, "The body did not arrive in time.").response()(scope, receive, send)
            return
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        if body is None:
            return
        replayed = False

        async def receiving() -> Message:
            nonlocal replayed
            if replayed:
                return await receive()
            replayed = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, receiving, send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The body; None when the client left.

        Raises:
            ApiError: it is too large.
        """
        declared = _header(scope, b"content-length")
        if declared is not None and declared.isdigit() and int(declared) > self._most:
            raise self._too_large()
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._most:
                raise self._too_large()
            if not message.get("more_body", False):
                return b"".join(parts)

    def _too_large(self) -> ApiError:
        return ApiError(413, f"The body is larger than {self._most} bytes.", code="body_too_large")


class Heads:
    """Answers HEAD as GET without a body, as probes and browsers may ask."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        inner = {**scope, "method": "GET"}
        await self._app(inner, receive, sending)
        if "route" in inner:  # the log counts by it
            scope["route"] = inner["route"]


def _header(scope: Scope, name: bytes) -> str | None:
    for key, value in scope["headers"]:
        if key == name:
            return str(value.decode("latin-1"))
    return None
