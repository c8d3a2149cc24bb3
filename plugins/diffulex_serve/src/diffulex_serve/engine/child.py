"""The engine's process: `python -m diffulex_serve.engine.child`, started by `process.ProcessTransport` alone."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import zmq

    from diffulex_serve.engine.messages import Command, Event

PARENT_GONE = 3
"""Exit status when the parent is gone."""


def main(log_format: str, name: str) -> int:
    """Read where to connect, serve an engine until told to close, and return the exit status.

    Args:
        log_format: `json` or `text`.
        name: what this process is called in the log.
    """
    endpoint, secret, spec = (sys.stdin.buffer.readline().decode().strip() for _ in range(3))
    if not spec:
        return PARENT_GONE
    threading.Thread(target=_end_with_parent, args=(endpoint,), daemon=True).start()
    sys.stderr = _Quiet(sys.stderr.buffer, encoding=sys.stderr.encoding, errors="backslashreplace", line_buffering=True)

    import zmq

    from diffulex_serve.logs import configure_engine_logs

    configure_engine_logs("json" if log_format == "json" else "text", name)
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.IDENTITY, secret.encode())
    # What was said last, such as why the engine died, should arrive; the frontend reads all the time.
    socket.setsockopt(zmq.LINGER, 2000)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.connect(endpoint)
    try:
        return _serve(_SocketLine(socket), spec)
    finally:
        socket.close()
        context.term()


def _serve(line: _SocketLine, spec: str) -> int:
    from diffulex_serve.engine.messages import Loading

    line.send([Loading(doing="Importing the libraries.")])

    from diffulex_core.plugin import DiffulexError
    from diffulex_serve.engine.loop import EngineLoop, died
    from diffulex_serve.engine.spec import EngineSpec

    telling = _Telling(line)
    core = logging.getLogger("diffulex_core")
    core.addHandler(telling)
    core.setLevel(logging.INFO)
    try:
        engine = EngineSpec.from_json(spec).open()
    except Exception as error:
        line.send([died(error)])
        if isinstance(error, DiffulexError):
            return 1
        raise
    finally:
        core.removeHandler(telling)
        core.setLevel(logging.NOTSET)
    with engine:
        EngineLoop(engine, line).run()
    return 0


def _end_with_parent(endpoint: str) -> None:
    """Wait until the parent's end of the pipe closes, and end: nobody could reach this engine any more."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    path = Path(endpoint.removeprefix("ipc://"))
    if endpoint.startswith("ipc://"):
        # The folder is the parent's, which may have had no time for it.
        with contextlib.suppress(OSError):
            path.unlink()
            path.parent.rmdir()
    os._exit(PARENT_GONE)


class _Quiet(io.TextIOWrapper):
    """An error stream on which nothing draws progress bars: the server draws, and knows of all of its engines."""

    def isatty(self) -> bool:
        return False


class _SocketLine:
    """The engine's end of the connection."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket

    def receive(self, *, block: bool) -> Sequence[Command]:
        import zmq

        from diffulex_serve.engine.wire import decode_commands

        commands = decode_commands(self._socket.recv()) if block else []
        while True:
            try:
                commands += decode_commands(self._socket.recv(zmq.NOBLOCK))
            except zmq.Again:
                return commands

    def send(self, events: Sequence[Event]) -> None:
        from diffulex_serve.engine.wire import encode

        self._socket.send(encode(events))


class _Telling(logging.Handler):
    """Tells the frontend what the core logs while it loads."""

    def __init__(self, line: _SocketLine) -> None:
        super().__init__(logging.INFO)
        self._line = line
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        """Send the record's message; a socket serves one thread, and what others log is not told."""
        from diffulex_serve.engine.messages import Loading

        if threading.get_ident() == self._thread:
            self._line.send([Loading(doing=record.getMessage())])


if __name__ == "__main__":
    # The server decides when its engine ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    status = main(*sys.argv[1:])
    logging.shutdown()
    # The engine is closed; taking the libraries apart as well would take longer than all of that.
    os._exit(status)
