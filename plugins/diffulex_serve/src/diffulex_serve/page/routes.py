"""The page's routes: files of this package, read once; they load nothing from elsewhere and hold no secret."""

from __future__ import annotations

import re
from importlib.resources import files

import attrs
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_FILES = (
    "app.js",
    "canvas.js",
    "compare.js",
    "controls.js",
    "figures.js",
    "film.js",
    "fold.js",
    "icon.svg",
    "server.js",
    "side.js",
    "speech.js",
    "style.css",
)

PAGE_PATHS = frozenset({"/", *(f"/page/{name}" for name in _FILES)})
"""What a browser loads before anybody can type a key."""

SECOND = "with"
"""Names a second server in the page's address: `/?with=http://127.0.0.1:8001`."""
_SERVER = re.compile(r"(https?://[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252}[A-Za-z0-9])?(?::[0-9]{1,5})?)(?:/.*)?")


def policy(second: str | None = None) -> str:
    """What a browser may do for the page: its own scripts and styles, and requests to this server.

    Args:
        second: address of a server that it may talk to as well; what is none is left out.
    """
    named = None if second is None else _SERVER.fullmatch(second)
    also = "" if named is None else f" {named[1]}"
    return (
        f"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'{also}; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


@attrs.frozen
class _File:
    """A file as it is sent."""

    content: bytes
    media_type: str

    @classmethod
    def read(cls, name: str) -> _File:
        path = files(__package__) / "assets" / name
        return cls(path.read_bytes(), _TYPES[name[name.rindex(".") :]])

    def response(self, second: str | None) -> Response:
        headers = {**HEADERS, "Content-Security-Policy": policy(second)}
        return Response(self.content, media_type=self.media_type, headers=headers)


def page_routes() -> APIRouter:
    """The routes."""
    router = APIRouter(include_in_schema=False)
    sent = {"/": _File.read("index.html"), **{f"/page/{name}": _File.read(name) for name in _FILES}}

    async def page(request: Request) -> Response:
        """The page, or one of its files."""
        return sent[request.url.path].response(request.query_params.get(SECOND))

    for path in sent:
        router.add_api_route(path, page, methods=["GET"], response_model=None)
    return router
