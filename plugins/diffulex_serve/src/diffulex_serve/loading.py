"""What is seen while engines load: a line that is drawn again and again on a terminal, log lines elsewhere."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import TextIO

from diffulex_serve.engine.protocols import EngineClient
from diffulex_serve.engine.status import EngineState, ReplicaStatus

_log = logging.getLogger(__name__)

_LOOK_EVERY = 0.2
_LOG_EVERY = 5.0
_CLEAR = "\r\x1b[2K"
_WIDEST = 200
"""Characters of a line on a terminal whose width is not known."""


async def watch_loading(client: EngineClient, *, model: str, terminal: TextIO | None, width: int = _WIDEST) -> None:
    """Tell what the engines do that load, until this is cancelled.

    Args:
        client: the engines.
        model: as the server calls it.
        terminal: where a line can be drawn; None = the log is told instead, now and then.
        width: columns of the terminal.
    """
    if terminal is None:
        await _log_it(client)
    else:
        await _draw_it(client, model, terminal, width)


def doing(replicas: Sequence[ReplicaStatus]) -> str:
    """What engines do that load, in words; empty where nothing is known."""
    told = [(index, each.doing) for index, each in enumerate(replicas) if each.state is EngineState.LOADING]
    if len(replicas) == 1:
        return "".join(words for _, words in told)
    return " ".join(f"Engine {index}: {words or 'Starting.'}" for index, words in told)


async def _log_it(client: EngineClient) -> None:
    said, logged = "", time.monotonic()
    while True:
        await asyncio.sleep(_LOOK_EVERY)
        words = doing(client.replicas)
        if words and words != said and time.monotonic() - logged >= _LOG_EVERY:
            said, logged = words, time.monotonic()
            _log.info("loading: %s", words)


async def _draw_it(client: EngineClient, model: str, terminal: TextIO, width: int) -> None:
    began = time.monotonic()

    def clear(_: logging.LogRecord) -> bool:
        terminal.write(_CLEAR)
        return True

    handlers = list(logging.getLogger().handlers)
    for handler in handlers:
        handler.addFilter(clear)
    try:
        while True:
            line = f"Loading {model}, {time.monotonic() - began:.0f} s. {doing(client.replicas)}"
            terminal.write(f"{_CLEAR}{line[: width - 1]}")
            terminal.flush()
            await asyncio.sleep(_LOOK_EVERY)
    finally:
        for handler in handlers:
            handler.removeFilter(clear)
        terminal.write(_CLEAR)
        terminal.flush()
