"""Logs of the server: lines for people or JSON objects for machines, with the id of the request that they are about."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from typing import Any, Literal

from diffulex_serve.journal import REQUEST_ID
from diffulex_serve.options import ServerSection

LogFormat = Literal["json", "text"]


def configure_logs(options: ServerSection) -> None:
    """Log to stderr as the options say, in place of what was configured before."""
    _log_to_stderr(options.log_format, "")
    logging.getLogger("uvicorn.error").addFilter(_no_cancellation)
    for name in ("diffulex_serve", "diffulex_core"):
        logging.getLogger(name).setLevel(options.log_level.upper())


def configure_engine_logs(log_format: LogFormat, process: str) -> None:
    """Log the warnings of an engine's process to stderr, in the server's format.

    Args:
        log_format: the server's.
        process: what the process is called in the log.
    """
    _log_to_stderr(log_format, process).setLevel(logging.WARNING)


def _log_to_stderr(log_format: LogFormat, process: str) -> logging.Handler:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(process) if log_format == "json" else TextLines(process))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.captureWarnings(True)
    return handler


def _no_cancellation(record: logging.LogRecord) -> bool:
    """Keep quiet of requests that are cut off when the server ends: their own lines tell of them."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


class JsonLines(logging.Formatter):
    """One JSON object for each record."""

    def __init__(self, process: str = "") -> None:
        """`process`: what the process is called; empty = the server's own, of which nothing is said."""
        super().__init__()
        self._process = {"process": process} if process else {}

    def format(self, record: logging.LogRecord) -> str:
        """`time`, `level`, `logger`, `message`, `request_id`, and the facts that came with it."""
        data: dict[str, Any] = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": REQUEST_ID.get(),
            **self._process,
        }
        facts = record.__dict__.get("facts")
        if isinstance(facts, dict):
            data |= facts
        if record.exc_info:
            data["exception"] = self.formatException(record.exc_info)
        return json.dumps(data)


class TextLines(logging.Formatter):
    """A line for each record; a request's id comes behind the message."""

    def __init__(self, process: str = "") -> None:
        """`process`: what the process is called; empty = the server's own, of which nothing is said."""
        before = f"{process}: ".replace("%", "%%") if process else ""
        super().__init__(f"%(asctime)s %(levelname)-7s {before}%(message)s", datefmt="%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """The line, and below it a stack trace where there is one."""
        request_id = REQUEST_ID.get()
        line = super().format(record)
        return line if request_id == "-" else f"{line} [{request_id[:12]}]"
