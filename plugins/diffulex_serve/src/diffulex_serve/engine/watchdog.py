"""Notices an engine that has work and says nothing: it is stuck in a forward."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

LAST_LOOK = 1.0
"""Seconds in which a late word is still heard: it may lie unread where this very process slept."""


class Watchdog:
    """Calls once something that is busy was silent for too long. What is idle is not watched, which costs nothing."""

    def __init__(
        self,
        seconds: float | None,
        *,
        busy: Callable[[], bool],
        silent: Callable[[], None],
        last_look: float = LAST_LOOK,
    ) -> None:
        """
        Args:
            seconds: of silence that are too long; None = never.
            busy: whether a word is due.
            silent: what is called then, from the event loop.
            last_look: seconds for words that were said in time and are read late.
        """
        self._seconds = seconds
        self._busy = busy
        self._silent = silent
        self._last_look = last_look
        self._heard = 0.0
        self._late = False
        self._timer: asyncio.TimerHandle | None = None

    def expect(self) -> None:
        """Something is about to be asked; called before `busy` tells of it."""
        if self._seconds is None:
            return
        if not self._busy():
            self.heard()
        if self._timer is None:
            self._look_in(self._seconds)

    def heard(self) -> None:
        """There was a word."""
        self._heard = asyncio.get_running_loop().time()
        self._late = False

    def stop(self) -> None:
        """Watch no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_in(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._seconds is None or not self._busy():
            return
        left = self._heard + self._seconds - asyncio.get_running_loop().time()
        if left > 0:
            self._look_in(left)
        elif not self._late:
            self._late = True
            self._look_in(self._last_look)
        else:
            self._silent()
