"""The page's routes: files of this package, read once; they load nothing from elsewhere and hold no secret."""

from __future__ import annotations

from importlib.resources import files

import attrs
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
"""What a browser may do for the page: its own scripts and styles, and requests to this server."""

HEADERS = {
    "Content-Security-Policy": POLICY,
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
    "controls.js",
    "figures.js",
    "film.js",
    "fold.js",
    "icon.svg",
    "server.js",
    "style.css",
)

PAGE_PATHS = frozenset({"/", *(f"/page/{name}" for name in _FILES)})
"""What a browser loads before anybody can type a key."""


@attrs.frozen
class _File:
    """A file as it is sent."""

    content: bytes
    media_type: str

    @classmethod
    def read(cls, name: str) -> _File:
        path = files(__package__) / "assets" / name
        return cls(path.read_bytes(), _TYPES[name[name.rindex(".") :]])

    def response(self) -> Response:
        return Response(self.content, media_type=self.media_type, headers=HEADERS)


def page_routes() -> APIRouter:
    """The routes."""
    router = APIRouter(include_in_schema=False)
    sent = {"/": _File.read("index.html"), **{f"/page/{name}": _File.read(name) for name in _FILES}}

    async def page(request: Request) -> Response:
        """The page, or one of its files."""
        return sent[request.url.path].response()

    for path in sent:
        router.add_api_route(path, page, methods=["GET"], response_model=None)
    return router
