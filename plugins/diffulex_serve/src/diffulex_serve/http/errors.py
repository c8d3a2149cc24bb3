"""What clients are told when something is wrong: OpenAI's error object, and never a stack trace."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import compile_path

from diffulex_core.plugin import InvalidSamplingParams, PromptTooLong, RequestError
from diffulex_serve.engine.errors import CallRejected, EngineUnavailable, RequestRefused
from diffulex_serve.journal import note
from diffulex_serve.stream.committing import StreamBroken

METHOD_NOT_ALLOWED = 405
UNAVAILABLE_FOR = 5
"""Seconds after which a client may ask again when there is no engine."""


class ApiError(Exception):
    """An answer that is an error, as `{"error": {"message", "type", "param", "code"}}`."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status, self.message, self.kind, self.param, self.code = status, message, kind, param, code
        self.headers = dict(headers or {})
        super().__init__(message)

    def body(self) -> dict[str, Any]:
        """The error object."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The answer; the request's line in the log tells of it."""
        note(error=self.code or self.kind)
        return json_response(self.body(), self.status, self.headers)


def json_bytes(value: object) -> bytes:
    """JSON in UTF-8; halves of surrogate pairs, which clients can send, become question marks."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", errors="replace")


def json_response(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer."""
    return Response(json_bytes(value), status_code=status, media_type="application/json", headers=dict(headers or {}))


def as_api_error(error: Exception) -> ApiError:
    """What a client is told of an error of ours; of any other that the server failed."""
    match error:
        case ApiError():
            return error
        case RequestRefused():
            if not error.user_error:
                return ApiError(500, str(error), kind="server_error")
            code = "context_length_exceeded" if error.kind == PromptTooLong.__name__ else None
            return ApiError(400, str(error), code=code)
        case PromptTooLong():
            return ApiError(400, str(error), code="context_length_exceeded")
        case InvalidSamplingParams() | RequestError():
            return ApiError(400, str(error))
        case CallRejected():
            return ApiError(400 if error.user_error else 409, str(error))
        case EngineUnavailable():
            headers = {"Retry-After": str(UNAVAILABLE_FOR)}
            return ApiError(503, str(error), kind="service_unavailable", code="engine_unavailable", headers=headers)
        case StreamBroken():
            return ApiError(500, str(error), kind="server_error")
        case _:
            return ApiError(500, "The server failed. Its log says more.", kind="server_error")


def _methods(app: FastAPI, path: str) -> list[str]:
    """The methods that the routes of a path have together; the router knows those of the first alone."""
    documented: dict[str, Any] = app.openapi()["paths"]
    found = (methods for route, methods in documented.items() if compile_path(route)[0].match(path))
    return sorted({method.upper() for methods in found for method in methods})


def _nearest(problems: Sequence[Any], first: Any) -> Any:
    """Of what is said of the field of the first problem, what a client most likely did wrong.

    Where a field may be of several kinds, there is a problem for each of them: that with the kind that was meant lies
    deepest, or is no matter of the kind.
    """
    same = [each for each in problems if each["loc"][:2] == first["loc"][:2]]
    return max(same, key=lambda each: (len(each["loc"]), not each["type"].endswith("_type")), default=first)


def _place(problem: Any, body: Any) -> list[str | int]:
    """Where a problem is: its place without the kinds that a field was read as, which no client knows."""
    kind, at, place = problem["type"], body, []
    if problem["loc"][:1] != ("body",):
        return list(problem["loc"])
    for part in problem["loc"][1:]:
        if isinstance(at, dict) and isinstance(part, str) and (part in at or kind == "missing"):
            at = at.get(part)
        elif isinstance(at, list) and isinstance(part, int) and part < len(at):
            at = at[part]
        elif part != "[key]":
            continue
        place.append(part)
    return place


def add_handlers(app: FastAPI) -> None:
    """Make every error of the application an error object."""

    async def of_ours(_: Request, error: Exception) -> Response:
        return as_api_error(error).response()

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        problems = error.errors()
        unread = {"type": "", "loc": (), "msg": "The request cannot be read"}
        first: Any = problems[0] if problems else unread
        if first["type"] == "json_invalid":
            return ApiError(400, f"The body is not JSON: {first['ctx']['error']}.").response()
        nearest = _nearest(problems, first)
        where = ".".join(map(str, _place(nearest, error.body)))
        others = len({each["loc"][:2] for each in problems} - {nearest["loc"][:2]})
        more = f" ({others} more problems)" if others else ""
        message = f"{where}: {nearest['msg']}.{more}" if where else f"{nearest['msg']}.{more}"
        return ApiError(400, message, param=where or None).response()

    async def of_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        headers = dict(error.headers or {})
        if error.status_code == METHOD_NOT_ALLOWED:
            allowed = set(_methods(app, request.url.path) or headers.get("Allow", "").split(", "))
            headers["Allow"] = ", ".join(sorted(allowed | {"HEAD"} if "GET" in allowed else allowed))
        return ApiError(error.status_code, f"{error.detail}.", headers=headers).response()

    for kind in (ApiError, RequestError, EngineUnavailable, CallRejected, StreamBroken):
        app.add_exception_handler(kind, of_ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, of_http)
