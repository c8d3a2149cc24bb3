"""What nobody should send: bodies, JSON of every bad kind, and bytes that are no HTTP. All follows from the seed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from typing import Any, Final

import attrs
from benchmarks.serve_load.oddities import (
    CHUNKS,
    EDGES,
    NAMES,
    NO_HTTP,
    NUMBERS,
    PATHS,
    TEXTS,
    TYPES,
    VALUES,
)

ROUTES = ("/generate", "/v1/completions", "/v1/chat/completions", "/v1/jobs", "/tokenize", "/detokenize")
LIMIT = 2_000_000
"""Bytes that a body may have, as the server's default is."""
JSON_TYPE = "application/json"


@attrs.frozen(kw_only=True)
class Attack:
    """What one connection sends.

    Attributes:
        pieces: bytes, in order.
        pause: seconds between the pieces.
        half_close: whether the client closes its half behind them; such a client counts as one that left.
        owed: answers without which the connection must not be closed.
    """

    pieces: tuple[bytes, ...]
    pause: float = 0.0
    half_close: bool = False
    owed: int = 1


def post(
    path: str, body: bytes, *, content_type: str | None = JSON_TYPE, headers: Mapping[str, str] | None = None
) -> bytes:
    """A request after which the connection is closed."""
    fields = {"Host": "127.0.0.1", "Connection": "close", "Content-Length": str(len(body)), **(headers or {})}
    if content_type is not None:
        fields["Content-Type"] = content_type
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode("utf-8", "surrogateescape") + body


def random_bytes(draw: random.Random) -> Attack:
    """A body of bytes."""
    return Attack(pieces=(post(draw.choice(ROUTES), draw.randbytes(draw.randrange(1, 300))),))


def odd_values(draw: random.Random) -> Attack:
    """JSON whose fields have values of wrong types and sizes."""
    fields = {"prompt": "Q:", "messages": [{"role": "user", "content": "Q:"}], "tokens": [1, 2]}
    body = {name: value for name, value in fields.items() if draw.random() < 0.6} | {"max_tokens": 4}
    body |= {draw.choice(NAMES): draw.choice(VALUES) for _ in range(draw.randrange(1, 4))}
    return Attack(pieces=(post(draw.choice(ROUTES), json.dumps(body).encode()),))


def plausible_values(draw: random.Random) -> Attack:
    """One field at the edge of what its type can hold, in a request that is otherwise in order."""
    path = draw.choice(ROUTES[:4])
    asked: dict[str, Any] = (
        {"prompt": "Q: 1"} if "chat" not in path else {"messages": [{"role": "user", "content": "Q"}]}
    )
    name = draw.choice(sorted(EDGES))
    body = {**asked, "max_tokens": 4, "temperature": draw.choice((0.0, 1.0)), name: draw.choice(EDGES[name])}
    if draw.random() < 0.3:
        body["stream"] = True
    if draw.random() < 0.3:
        body["n"] = 2
    return Attack(pieces=(post(path, json.dumps(body).encode()),))


def cut_json(draw: random.Random) -> Attack:
    """JSON that ends too early, or goes on behind its end."""
    text = json.dumps({"prompt": "Q: 1 + 1", "max_tokens": 4, "stop": ["a", "b"]}).encode()
    at = draw.randrange(len(text))
    body = draw.choice((text[:at], text + text[at:], text[:at] + b"\x00" + text[at:], text * 2))
    return Attack(pieces=(post(draw.choice(ROUTES), body),))


def deep_json(draw: random.Random) -> Attack:
    """Lists and objects within each other, alone or as a field's value, well-formed or never closed."""
    depth = draw.choice((30, 300, 600, 950, 2_000, 20_000, 200_000))
    opening, inner, closing = draw.choice(((b"[", b"", b"]"), (b'{"a":', b"1", b"}"), (b'[{"":', b"null", b"}]")))
    value = opening * depth + inner + (closing * depth if draw.random() < 0.7 else b"")
    if draw.random() < 0.7:
        name = draw.choice(("sparse", "tools", "response_format", "thresholds", "logit_bias", "messages", "prompt"))
        asked = b'"messages":[{"role":"user","content":"Q"}],"prompt":"Q",' if draw.random() < 0.5 else b'"prompt":"Q",'
        value = b"{" + asked + b'"max_tokens":4,"' + name.encode() + b'":' + value + b"}"
    return Attack(pieces=(post(draw.choice(ROUTES), value[:LIMIT]),))


def huge_numbers(draw: random.Random) -> Attack:
    """Numbers with many digits, infinities, NaN, and what JSON does not know."""
    digits = draw.choice((20, 309, 4_300, 4_301, 100_000))
    long = ("9" * digits, "-" + "9" * digits, "0." + "0" * digits + "1")
    number = draw.choice((*NUMBERS, *long))
    name = draw.choice(
        ("temperature", "max_tokens", "seed", "top_k", "n", "top_p", "stop_token_ids", "prompt", "steps")
    )
    value = draw.choice((number, f"[{number}]", f'{{"1": {number}}}'))
    other = '"messages": [{"role": "user", "content": "Q"}]' if draw.random() < 0.5 else '"prompt": "Q"'
    body = f'{{{other}, "{name}": {value}}}'
    return Attack(pieces=(post(draw.choice(ROUTES), body.encode()),))


def bad_text(draw: random.Random) -> Attack:
    """Invalid UTF-8, halves of surrogate pairs, other encodings, and characters that break lines and terminals."""
    odd = draw.choice(TEXTS)
    field = draw.choice(("prompt", "model", "stop", "user", "mask_symbol", "confidence", "remasking", "alg"))
    text = b'{"prompt": "Q", "max_tokens": 4, "stream": true, "%s": "%s"}' % (field.encode(), odd)
    chat = b'{"messages": [{"role": "%s", "content": "%s"}], "max_tokens": 4}' % (odd, odd)
    named = b'{"prompt": "Q", "max_tokens": 4, "%s": 1, "logit_bias": {"%s": 1}}' % (odd, odd)
    body = draw.choice((text, chat, named))
    if draw.random() < 0.2:
        encoding = draw.choice(("utf-16", "utf-32", "utf-7", "utf-8-sig"))
        body = body.decode("utf-8", "replace").encode(encoding)
    return Attack(pieces=(post(draw.choice(ROUTES), body),))


def wrong_type(draw: random.Random) -> Attack:
    """A content type that does not fit the body, or is none."""
    bodies = (b'{"prompt": "Q", "max_tokens": 4}', b"prompt=Q&max_tokens=4", b"--x\r\n\r\n--x--", b"", b"<prompt/>")
    return Attack(pieces=(post(draw.choice(ROUTES), draw.choice(bodies), content_type=draw.choice(TYPES)),))


def odd_routes(draw: random.Random) -> Attack:
    """Methods and paths that do not exist or do not go together."""
    methods = ("GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "CONNECT", "X" * 30, "get")
    line = f"{draw.choice(methods)} {draw.choice((*ROUTES, *PATHS))} HTTP/1.1"
    return Attack(pieces=(f"{line}\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode(),), owed=0)


def odd_headers(draw: random.Random) -> Attack:
    """Headers that are many, giant, doubled, or lie."""
    body = b'{"prompt": "Q", "max_tokens": 4}'
    choices: tuple[Mapping[str, str], ...] = (
        {"X-Filler": "a" * draw.choice((8_000, 60_000, 100_000, 1_000_000))},
        {f"X-{number}": "a" * 20 for number in range(draw.choice((50, 1_000, 5_000)))},
        {"X-Request-Id": draw.choice(("\x01", "a" * 5_000, "\udcff", "${jndi:x}", "'; drop", "%0d%0aX: y"))},
        {"Authorization": draw.choice(("Bearer", "Bearer \udcff", "Basic eA==", "\udcff", "Bearer " + "k" * 9_000))},
        {"Content-Length": draw.choice(("-1", "9" * 30, "+3", "0x10", "1, 1", "", "a", "1e3", "3"))},
        {"Host": draw.choice(("", "a" * 9_000, "\udcff", "evil.test"))},
        {"Transfer-Encoding": draw.choice(("gzip", "chunked, gzip", "identity", "\udcff", "chunked"))},
        {"Content-Encoding": "gzip", "Accept-Encoding": "\udcff", "Accept": "*"},
        {"Expect": draw.choice(("100-continue", "200-ok"))},
        {"Upgrade": draw.choice(("websocket", "h2c", "TLS/1.3")), "Connection": "Upgrade", "Sec-WebSocket-Key": "eA=="},
        {"Origin": "null", "Referer": "\udcff", "Cookie": "a=b; " * 500},
    )
    # A lie about the length may leave the server waiting for more: nothing is owed but an end.
    return Attack(pieces=(post(draw.choice(ROUTES), body, headers=draw.choice(choices)),), owed=0)


def no_http(draw: random.Random) -> Attack:
    """Bytes that are no HTTP request."""
    lines = (*NO_HTTP, draw.randbytes(draw.randrange(1, 2_000)))
    return Attack(pieces=(draw.choice(lines),), half_close=draw.random() < 0.5, owed=0)


def bad_chunks(draw: random.Random) -> Attack:
    """Chunked bodies: malformed, over the limit, and of very many chunks."""
    head = f"POST {draw.choice(ROUTES)} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: {JSON_TYPE}\r\n"
    head += "Transfer-Encoding: chunked\r\n"
    if draw.random() < 0.2:
        head += "Content-Length: 5\r\n"
    return Attack(pieces=(head.encode() + b"\r\n", draw.choice(CHUNKS)), owed=0)


def pipelined(draw: random.Random) -> Attack:
    """Many requests in one write; each is owed its answer, in order."""
    count = draw.randrange(2, 12)
    bodies = (
        b'{"prompt": "Q", "max_tokens": 4}',
        b'{"prompt": "Q", "max_tokens": 4, "stream": true}',
        b"{",
        b"[]",
        b"",
    )
    asked = [post(draw.choice(ROUTES), draw.choice(bodies)) for _ in range(count)]
    kept = [each.replace(b"Connection: close\r\n", b"") for each in asked[:-1]]
    return Attack(pieces=(b"".join([*kept, asked[-1]]),), owed=count)


def over_the_limit(draw: random.Random) -> Attack:
    """A body that is larger than the server takes, as it says, and one that says nothing of it."""
    size = LIMIT + draw.randrange(1, 500_000)
    path, body = draw.choice(ROUTES), b'{"prompt": "' + b"a" * size + b'"}'
    if draw.random() < 0.5:
        return Attack(pieces=(post(path, body),))
    head = post(path, b"", headers={"Content-Length": str(size)})
    return Attack(pieces=(head,))


def left_early(draw: random.Random) -> Attack:
    """A request that is cut, after which the client closes its half."""
    whole = post(draw.choice(ROUTES), json.dumps({"prompt": "Q", "max_tokens": 4, "stream": True}).encode())
    cut = draw.randrange(1, len(whole) + 1)
    return Attack(pieces=(whole[:cut],), half_close=True, owed=0)


def slow_head(draw: random.Random) -> Attack:
    """A head that comes byte by byte and never ends: the server must not wait for all of it."""
    pieces = tuple(bytes([byte]) for byte in b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 100)
    return Attack(pieces=pieces[: draw.randrange(1, len(pieces))], pause=draw.uniform(0.05, 0.2), owed=0)


def slow_body(draw: random.Random) -> Attack:
    """A body that comes byte by byte: the server says that it takes too long."""
    whole = post(draw.choice(ROUTES), b'{"prompt": "' + b"a" * 500 + b'"}')
    head, _, body = whole.partition(b"\r\n\r\n")
    pieces = (head + b"\r\n\r\n", *(bytes([byte]) for byte in body[: draw.randrange(1, 500)]))
    return Attack(pieces=pieces, pause=draw.uniform(0.05, 0.2))


Kind = Callable[[random.Random], Attack]
QUICK: Final[tuple[Kind, ...]] = (
    *(random_bytes, odd_values, plausible_values, cut_json, deep_json, huge_numbers, bad_text, wrong_type, odd_routes),
    *(odd_headers, no_http, bad_chunks, pipelined, over_the_limit, left_early),
)
"""Kinds that are over at once."""
SLOW: Final[tuple[Kind, ...]] = (slow_head, slow_body)
"""Kinds that last as long as the server waits for them."""
