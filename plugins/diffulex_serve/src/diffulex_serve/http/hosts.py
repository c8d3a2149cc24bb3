"""The names under which a server is asked: a page of a stranger may have its name point here (DNS rebinding)."""

from __future__ import annotations

import ipaddress

from starlette.types import ASGIApp, Receive, Scope, Send

from diffulex_serve.http.errors import ApiError
from diffulex_serve.options import ServeOptions

ANY = "*"
"""In `allowed_hosts`: every name."""
_LOCAL_NAMES = frozenset({"", "localhost"})
_LOCAL_ENDINGS = (".localhost", ".internal")
"""Of names that nobody can register."""
_LONGEST_NAME = 253


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine reach what listens on `host`, a name or an address."""
    address = _address(host)
    return host == "localhost" if address is None else address.is_loopback


def expected_hosts(options: ServeOptions) -> frozenset[str] | None:
    """The names that a server answers to beside local ones; None = it does not look.

    Without `allowed_hosts` it looks where nothing but being local keeps strangers out: on a loopback address without
    a key.
    """
    named = frozenset(_name_in(host) for host in options.security.allowed_hosts)
    if ANY in named:
        return None
    open_to_local = is_loopback(options.server.host) and options.security.api_key is None
    return named if named or open_to_local else None


class HostCheck:
    """Refuses requests that name another host than the server's.

    A browser tells the name of the page that asks, and an attacker's page has a name of its own, also where it made
    that name point to this machine. Addresses, `localhost` and names that nobody can register are therefore harmless.
    """

    def __init__(self, app: ASGIApp, *, allowed: frozenset[str]) -> None:
        """`allowed`: further names in lower case; `*.example.com` allows all that end so."""
        self._app = app
        self._names = _LOCAL_NAMES | allowed
        self._endings = (*_LOCAL_ENDINGS, *(name[1:] for name in allowed if name.startswith("*.")))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            for key, value in scope["headers"]:
                if key == b"host" and not self._answers_to(name := _name_in(value.decode("latin-1"))):
                    shown = name[:_LONGEST_NAME]
                    error = ApiError(
                        403,
                        f"This server does not answer to the name {shown!r}. Ask it by its address, "
                        f"or start it with --allowed-hosts {shown}.",
                        kind="permission_error",
                        code="host_not_allowed",
                    )
                    await error.response()(scope, receive, send)
                    return
        await self._app(scope, receive, send)

    def _answers_to(self, name: str) -> bool:
        return name in self._names or name.endswith(self._endings) or _address(name) is not None


def _name_in(header: str) -> str:
    """The name or address of a Host header, without its port."""
    host, colon, port = header.strip().lower().rpartition(":")
    if not colon or not port.isdigit():  # of an IPv6 address, which brackets enclose
        host = header.strip().lower()
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host.removesuffix(".")


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
