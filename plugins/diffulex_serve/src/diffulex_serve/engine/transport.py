"""How a client reaches its engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from diffulex_serve.engine.messages import Command, Event


class Transport(Protocol):
    """Starts an engine and carries messages; used by one `Client`, from its event loop."""

    async def open(self) -> None:
        """Start the engine; `Ready`, or `Died`, is its first event."""
        ...

    def send(self, command: Command) -> None:
        """Send a command; does not wait."""
        ...

    async def receive(self) -> Sequence[Event]:
        """The next events, in order; waits for some.

        Raises:
            EngineDied: the engine is gone, and everything it said was received.
        """
        ...

    async def close(self) -> None:
        """Wait for the engine to end, end it by force if it does not, and free everything.

        Raises:
            EngineDied: it cannot be ended.
        """
        ...

    def kill(self) -> None:
        """End it by force now, where that can be done; `close` frees the rest."""
        ...
