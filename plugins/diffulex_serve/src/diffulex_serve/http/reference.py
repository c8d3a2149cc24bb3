"""The OpenAPI document as a page for people at `/docs`: plain HTML that loads nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
:root { color-scheme: light dark } h3 { margin: 1.6rem 0 .2rem } code { font-size: .92em }
table { border-collapse: collapse; margin: .5rem 0 1rem } th { font-weight: 600; border-bottom: 1px solid }
th, td { text-align: left; vertical-align: top; padding: .15rem 1rem .15rem 0 }
"""


def reference_routes() -> APIRouter:
    """The route."""
    router = APIRouter(include_in_schema=False)
    made: dict[str, str] = {}

    @router.get("/docs", response_model=None)
    async def reference(request: Request) -> Response:
        """The page; made once."""
        if "text" not in made:
            made["text"] = await asyncio.to_thread(page, request.app.openapi())
        return Response(made["text"], media_type="text/html; charset=utf-8", headers=_HEADERS)

    return router


def page(document: Mapping[str, Any]) -> str:
    """An OpenAPI document as HTML: the routes by their tags, then the schemas."""
    title = escape(f"{document['info']['title']} {document['info']['version']}")
    about = _text(document["info"].get("description", ""))
    parts = [f"<h1>{title}</h1>", about, '<p>For programs: <a href="openapi.json">openapi.json</a>.</p>']
    operations = [
        (f"{method.upper()} {path}", operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    for tag in dict.fromkeys(tag for _, operation in operations for tag in operation["tags"]):
        parts.append(f"<h2>{escape(tag)}</h2>")
        for name, operation in operations:
            if tag in operation["tags"]:
                parts += _operation(name, operation)
    parts.append("<h2>Schemas</h2>")
    for name, schema in sorted(document["components"]["schemas"].items()):
        parts += _schema(name, schema)
    head = f'<meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>'


def _operation(name: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f"<h3><code>{escape(name)}</code></h3>{_text(operation['description'])}"
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    if body is not None:
        yield f"<p>Body: {_kind(body)}</p>"
    rows = [
        (escape(status), escape(response["description"]), " or ".join(_forms(response)))
        for status, response in sorted(operation["responses"].items())
    ]
    yield _table(("Status", "When", "Body"), rows)


def _forms(response: Mapping[str, Any]) -> Iterator[str]:
    for media_type, content in response.get("content", {}).items():
        yield f"{_kind(content.get('schema', {}))} <small>{escape(media_type)}</small>"


def _schema(name: str, schema: Mapping[str, Any]) -> Iterator[str]:
    yield f'<h3 id="{escape(name)}">{escape(name)}</h3>{_text(schema.get("description", ""))}'
    if "properties" not in schema:
        yield f"<p>{_kind(schema)}</p>"
        return
    required = set(schema.get("required", ()))
    rows = [
        (
            f"<code>{escape(field)}</code>",
            _kind(about) + ("" if field in required else " <small>optional</small>"),
            escape(about.get("description", "")),
        )
        for field, about in schema["properties"].items()
    ]
    yield _table(("Field", "Type", ""), rows)


def _kind(schema: Mapping[str, Any]) -> str:
    """A schema in a few words; references become links."""
    match schema:
        case {"$ref": str(reference)}:
            name = escape(reference.rpartition("/")[2])
            return f'<a href="#{name}">{name}</a>'
        case {"anyOf": list(choices)}:
            return " or ".join(map(_kind, choices))
        case {"const": value}:
            return f"<code>{escape(repr(value))}</code>"
        case {"enum": list(values)}:
            return ", ".join(f"<code>{escape(repr(value))}</code>" for value in values)
        case {"type": "array", "items": items}:
            return f"list of {_kind(items)}"
        case {"type": "array", "prefixItems": list(items)}:
            return f"[{', '.join(map(_kind, items))}]"
        case {"type": "object", "additionalProperties": Mapping() as values}:
            return f"table of {_kind(values)}"
        case {"type": str(name)}:
            return escape(name)
        case _:
            return "any"


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A table; its cells are HTML."""
    lines = [
        "".join(f"<th>{head}</th>" for head in heads),
        *("".join(f"<td>{cell}</td>" for cell in row) for row in rows),
    ]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _text(text: str) -> str:
    """Paragraphs; what stands between backticks is code."""
    paragraphs = []
    for paragraph in escape(text).split("\n\n"):
        parts = paragraph.split("`")
        paragraphs.append("".join(f"<code>{part}</code>" if at % 2 else part for at, part in enumerate(parts)))
    return "".join(f"<p>{each}</p>" for each in paragraphs if each)
