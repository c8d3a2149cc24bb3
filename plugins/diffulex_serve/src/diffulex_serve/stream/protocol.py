"""Diffusion stream protocol v1: what a client is told while an answer is denoised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import attrs

PROTOCOL = 1
Detail = Literal["none", "blocks", "tokens", "tokens+confidence"]
"""How much a client wants to know: only what is final; blocks that open too; every change; changes with confidence."""


@attrs.frozen(kw_only=True)
class Start:
    """The first event: what answers, and how. `mask_symbol` is what to show for a position without a token."""

    event: ClassVar[str] = "start"
    prompt_tokens: int
    model: str
    strategy: str
    block_size: int
    mask_symbol: str


@attrs.frozen(kw_only=True)
class BlockOpen:
    """A block entered behind those before: positions `[start, start + len)` show no token yet."""

    event: ClassVar[str] = "block_open"
    block: int
    start: int
    len: int


@attrs.frozen(kw_only=True)
class Fill:
    """Positions of a block that showed no token show one; it may change until it is committed."""

    event: ClassVar[str] = "fill"
    block: int
    pos: tuple[int, ...]
    token_ids: tuple[int, ...]
    text: tuple[str, ...]
    confidence: tuple[float, ...] | None = None


@attrs.frozen(kw_only=True)
class Rewrite:
    """Positions of a block show another token than before."""

    event: ClassVar[str] = "rewrite"
    block: int
    pos: tuple[int, ...]
    old: tuple[int, ...]
    new: tuple[int, ...]
    text: tuple[str, ...]
    confidence: tuple[float, ...] | None = None


@attrs.frozen(kw_only=True)
class Remask:
    """Positions of a block show no token any more."""

    event: ClassVar[str] = "remask"
    block: int
    pos: tuple[int, ...]


@attrs.frozen(kw_only=True)
class BlockCommit:
    """A piece of the answer is final, text and tokens; the pieces follow each other without gap.

    A piece lies within one block; a block may come in several, and `complete` says that this one ends it. The tokens
    are those that hold the text: the text may end within the last of them.
    """

    event: ClassVar[str] = "block_commit"
    block: int
    start: int
    token_ids: tuple[int, ...]
    text: str
    complete: bool


@attrs.frozen(kw_only=True)
class Snapshot:
    """All positions from `start` on, None where none is shown: where to go on after events were lost."""

    event: ClassVar[str] = "snapshot"
    start: int
    len: int
    token_ids: tuple[int | None, ...]


@attrs.frozen(kw_only=True)
class Metrics:
    """How fast it goes, at most twice a second: final tokens per forward and per second, share of used pages."""

    event: ClassVar[str] = "metrics"
    tpf: float
    decode_tps: float
    kv_usage: float


@attrs.frozen(kw_only=True)
class End:
    """The last event of an answer. `text` and `token_ids` are those of all commits together."""

    event: ClassVar[str] = "end"
    finish_reason: str
    stop_detail: str
    usage: Mapping[str, Any]
    text: str
    token_ids: tuple[int, ...]


@attrs.frozen(kw_only=True)
class Error:
    """The last event of an answer that could not be finished."""

    event: ClassVar[str] = "error"
    message: str
    type: str


Body = Start | BlockOpen | Fill | Rewrite | Remask | BlockCommit | Snapshot | Metrics | End | Error


@attrs.frozen(kw_only=True)
class Frame:
    """An event with its place in the stream.

    Attributes:
        id: of the request.
        seq: counts a request's frames from 0 without gap.
        step: number of the engine's step, -1 before the first.
        nfe: forwards of the request so far.
        body: the event.
    """

    id: str
    seq: int
    step: int
    nfe: int
    body: Body

    def as_json(self) -> dict[str, Any]:
        """The frame as JSON values, the event's name first and its fields beside those of the frame."""
        given = attrs.asdict(self.body, recurse=False)
        fields = {name: value for name, value in given.items() if value is not None}
        return {
            "v": PROTOCOL,
            "event": self.body.event,
            "id": self.id,
            "seq": self.seq,
            "step": self.step,
            "nfe": self.nfe,
            **fields,
        }
