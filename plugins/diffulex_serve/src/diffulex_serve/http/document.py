"""The OpenAPI document: what every route takes and answers, streams and errors included."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from diffulex_serve.http.answers import ErrorBody
from diffulex_serve.http.frames import streamed
from diffulex_serve.http.middleware import OPEN_ROUTES

ERRORS: Mapping[int, str] = {
    400: "The request makes no sense; the message says why, and `param` where.",
    401: "The API key is missing or wrong.",
    404: "There is no such model or job.",
    408: "The body did not arrive in time.",
    409: "The engine cannot do that now.",
    413: "The body is too large.",
    429: "So many requests wait that no more may; `Retry-After` says when to come back.",
    499: "The client left; nobody reads this.",
    500: "The server or the engine failed.",
    503: "No engine takes requests now; `Retry-After` says when to come back.",
    504: "The request took longer than `request_timeout` allows.",
}
ALWAYS = (401, 408, 413, 500)
"""Errors of every route."""
ENGINE = (503,)
"""Of routes that need to know the engine."""
WORK = (400, 404, 429, 499, 503, 504)
"""Of routes that have the engine answer something."""

_REFERENCE = "#/components/schemas/{model}"


def answers(
    model: type[BaseModel] | None, *errors: int, status: int = 200, stream: str = "", also: tuple[int, ...] = ()
) -> dict[int | str, dict[str, Any]]:
    """What a route answers, for its `responses`.

    Args:
        model: of the answer; None = it is plain text.
        errors: statuses that it may have besides those of every route.
        status: of an answer that is no error.
        stream: name of the union of events that it sends instead, when it is asked to stream.
        also: further statuses of answers of the same form.
    """
    told: dict[int | str, dict[str, Any]] = {
        error: {"model": ErrorBody, "description": ERRORS[error]} for error in sorted({*ALWAYS, *errors})
    }
    for each in (status, *also):
        good: dict[str, Any] = {"description": "The answer."}
        if model is None:
            good["content"] = {"text/plain": {"schema": {"type": "string"}}}
        else:
            good["model"] = model
        if stream:
            schema = {"$ref": _REFERENCE.format(model=stream)}
            good["content"] = {"text/event-stream": {"schema": schema}}
            good["description"] = (
                "The answer; with `stream` its events, one JSON object after each `data:`, then `[DONE]`."
            )
        told[each] = good
    return told


class Application(FastAPI):
    """An application whose document says what is answered when something is wrong, and what streams send."""

    def __init__(self, *, secured: bool, **settings: Any) -> None:
        """`secured`: the routes want a key."""
        super().__init__(**settings)
        self._secured = secured

    def openapi(self) -> dict[str, Any]:
        """The document; made once."""
        if self.openapi_schema is None:
            self.openapi_schema = self._completed(super().openapi())
        return self.openapi_schema

    def _completed(self, document: dict[str, Any]) -> dict[str, Any]:
        parts = document.setdefault("components", {})
        schemas = parts.setdefault("schemas", {})
        for operations in document["paths"].values():
            for operation in operations.values():
                # What cannot be read is told with status 400, as OpenAI does.
                operation["responses"].pop("422", None)
                content = operation["responses"].get("200", {}).get("content", {})
                if "text/plain" in content:
                    del content["application/json"]
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        unions = streamed()
        models = [(model, "serialization") for union in unions.values() for model in union]
        _, described = models_json_schema(models, ref_template=_REFERENCE)  # type: ignore[arg-type]  # they are modes
        schemas |= {name: schema for name, schema in described["$defs"].items() if name not in schemas}
        for name, union in unions.items():
            schemas[name] = {"anyOf": [{"$ref": _REFERENCE.format(model=model.__name__)} for model in union]}
        if self._secured:
            parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            document["security"] = [{"key": []}]
            for path in OPEN_ROUTES:
                document["paths"][path]["get"]["security"] = []
        return document
