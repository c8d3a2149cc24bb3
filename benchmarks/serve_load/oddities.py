"""Values, texts, paths and types that a server does not expect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

NAMES: Final = (
    *("prompt", "messages", "max_tokens", "temperature", "n", "stop", "logprobs", "seed", "tokens", "stream", "top_k"),
    *("model", "stream_options", "stream_mode", "detail", "logit_bias", "thresholds", "sparse", "top_logprobs"),
)
"""Fields of bodies."""
VALUES: Final[tuple[Any, ...]] = (
    *(None, True, False, -1, 0, 10**30, -(2**63), 1e308, -0.0, "", "\ud800", "x" * 5_000, "\x00", "none", "1"),
    *([], {}, [[]], [None], [10**9], [-1], ["a", 1], [[1], [2]], [""], {"a": [None]}, {"role": "user"}, [{"role": 1}]),
    *([{"role": "user", "content": [{"type": "image_url"}]}], [{"role": "tool", "content": None}], {"": ""}),
)
"""Values that fit few of them."""
EDGES: Final[Mapping[str, tuple[Any, ...]]] = {
    "temperature": (1e-300, 1e-38, 1e30, 1e308, -1e-300, 5e-324),
    "top_p": (0.0, 5e-324, 1e-12, 1.0, 1.0000001),
    "min_p": (0.0, 5e-324, 1.0, 0.999999999),
    "top_k": (0, 1, -1, 2**31, 2**63 - 1, -(2**63)),
    "seed": (0, -1, 2**31, 2**32, 2**63 - 1, -(2**63)),
    "max_tokens": (0, 1, -1, 2**31, 2**63 - 1),
    "max_nfe": (0, 1, 2**31, 2**63 - 1),
    "max_repetition_run": (0, 1, 2**63 - 1),
    "logit_bias": ({"0": 1e308}, {str(n): -1e30 for n in range(673)}, {"674": 1e4}, {"1": -1e4}, {"9999999999": 1}),
    "stop": ("", "\ud800", [""], ["a"] * 32, "x" * 100_000, ["\n" * 256]),
    "stop_token_ids": ([], [0] * 1024, [2**31 - 1], list(range(675))),
    "thresholds": ({"accept": 1e308}, {"accept_threshold": -1}, {"": 0}, {"accept_threshold": 5e-324}),
    "logprobs": (0, 5, 20, 2**31, -1, True),
    "prompt": (
        *([0], [674] * 10, [2**31 - 1], "a" * 100_000, "\u200d" * 600, " ", ["a"] * 16),
        *([0] * 511, [0] * 512, [[0]] * 17),
    ),
    "messages": ([{"role": "x" * 64, "content": "\x00"}], [{"role": "system", "content": ""}] * 200),
    "sparse": (
        {},
        {"enabled": True},
        {"retention_ratio": 1e-300},
        {"a": 1},
        {"enabled": True, "pool_kernel": 2**40 + 1},
    ),
    "gen_length": (0, 1, 2**40, -5),
    "steps": (0, 1, 2**40),
    "block_length": (0, 1, 3, 2**40),
    "cfg_scale": (1e308, -1.0, 2.0),
    "snapshot_every": (1, 2**62),
    "min_interval_ms": (0, 1, 60_001),
    "mask_symbol": ("\ud800", "\x00", "xxxxx", "</script>"),
}
"""Values of the right type at the edge of what can be."""
NUMBERS: Final = (
    *("NaN", "Infinity", "-Infinity", "1e400", "-1e400", "1e-400", "0x10", "1_000", "+1", ".5", "1.", "-", "-0", "00"),
    "1E+99999",
)
"""What stands where JSON has numbers, and is not one or has no end."""
TEXTS: Final = (
    *(b"\xff\xfe", b"\xc3\x28", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", b"\xc0\x80", b"\x80" * 50, b"\\ud800"),
    *(b"\\udfff", b"\\ud83d\\u0000", b"\\udc00\\ud800", b"\\u0000", b"\\uffff", b"\xef\xbf\xbe", b"\x1b[2J", b"\t"),
    *(b"\\r\\ndata: [DONE]\\r\\n\\r\\n", b"\\u2028\\u2029", b"\xe2\x80\xae" * 20, b"\xcc\x81" * 2_000, b"\\u", b"\\x"),
    *(b"<|endoftext|>" * 20, b"{{7*7}}"),
)
"""Texts within quotes: no UTF-8, halves of pairs, and what breaks lines, terminals and templates."""
PATHS: Final = (
    *("/", "//", "/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/assets/../routes.py", "/%00", "/%ff%fe"),
    *("/v1/models/%ff", "/v1/models/" + "a/" * 400, "/v1/jobs/" + "x" * 8_000, "/v1/requests/%0d%0a", "/metrics/"),
    *("http://127.0.0.1/health", "/health?" + "a=b&" * 2_000, "/openapi.json#x", "/generate/", "/v1/jobs/%F0%9F%8E"),
)
"""Paths that few ask for."""
TYPES: Final = (
    *(None, "", "text/plain", "application/xml", "multipart/form-data", "multipart/form-data; boundary=", "*/*", ";"),
    *("multipart/form-data; boundary=x", "application/x-www-form-urlencoded", "application/json; charset=utf-16"),
    *("application/json; charset=\x7f", "application/" + "x" * 5_000, "application/json, text/plain"),
)
"""Content types, None for no word of it."""
NO_HTTP: Final = (
    *(
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\r\n" * 500,
        b"\x00" * 100,
    ),
    *(
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/1.1\nHost: x\n\n",
        b"POST / HTTP/1.1\r\n\r\n",
        b"GET\r\n\r\n",
    ),
    *(b"GET / HTTP/1.1\r\nHost: x\r\n a: folded\r\n\r\n", b"GET / HTTP/1.1\r\nno colon\r\n\r\n", b"EHLO x\r\n"),
    *(
        b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET  /  HTTP/1.1\r\n\r\n",
    ),
    b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
)
"""Bytes that are no request."""
CHUNKS: Final = (
    *(
        b"zz\r\n{}\r\n0\r\n\r\n",
        b"-1\r\n{}\r\n0\r\n\r\n",
        b"2\r\n{}X\r\n0\r\n\r\n",
        b"ffffffffffffffffff\r\n{}",
        b"2 \r\n{}\r\n",
    ),
    *(b"2;" + b"e" * 70_000 + b"\r\n{}\r\n0\r\n\r\n", b"1\r\n \r\n" * 3_000 + b"2\r\n{}\r\n0\r\n\r\n", b"0\r\n\r\n"),
    *(b"2\r\n{}\r\n0\r\nX: " + b"t" * 70_000 + b"\r\n\r\n", b"2\r\n{}\r\n0\r\nTrailer: x\r\n\r\n"),
    (b"10000\r\n" + b" " * 0x10000 + b"\r\n") * 40 + b"0\r\n\r\n",
)
"""Chunked bodies: malformed, of very many chunks, and larger than a server takes."""
