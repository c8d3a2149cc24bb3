"""Logs of the server: lines for people or JSON objects for machines, with the id of the request that they are about."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

from diffulex_serve.http.middleware import REQUEST_ID
from diffulex_serve.options import ServerSection


def configure_logs(options: ServerSection) -> None:
    """Log to stderr as the options say, in place of what was configured before."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if options.log_format == "json" else TextLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in ("diffulex_serve", "diffulex_core"):
        logging.getLogger(name).setLevel(options.log_level.upper())


class JsonLines(logging.Formatter):
    """One JSON object for each record."""

    def format(self, record: logging.LogRecord) -> str:
        """`time`, `level`, `logger`, `message`, `request_id`, and the facts that came with it."""
        data: dict[str, Any] = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": REQUEST_ID.get(),
        }
        facts = record.__dict__.get("facts")
        if isinstance(facts, dict):
            data |= facts
        if record.exc_info:
            data["exception"] = self.formatException(record.exc_info)
        return json.dumps(data)


class TextLines(logging.Formatter):
    """A line for each record; a request's id comes before the message."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """The line, and below it a stack trace where there is one."""
        request_id = REQUEST_ID.get()
        line = super().format(record)
        return line if request_id == "-" else f"{line} [{request_id[:12]}]"
