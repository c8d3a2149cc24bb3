"""A limit on how long a call of code under test may take, so that a loop without end is a failure and not a hang."""

from __future__ import annotations

import signal
import threading
from contextlib import AbstractContextManager, nullcontext
from types import FrameType
from typing import Any

import attrs

BUSY = 3.0
"""Seconds of computing that no call of the kit comes near to."""
IDLE = 60.0
"""Seconds on the clock for calls that wait for something; long, since machines are shared."""

_HAS_TIMERS = {"setitimer", "SIGVTALRM", "SIGALRM"} <= set(dir(signal))


class OutOfPatience(BaseException):
    """A call did not return. No `Exception`, so that nobody takes it for an error of theirs and tries again."""


def patience(what: str, *, busy: float = BUSY, idle: float = IDLE) -> AbstractContextManager[None]:
    """Raise `OutOfPatience` when the body takes too long.

    Only the main thread of a system with interval timers can be interrupted; elsewhere there is no limit.

    Args:
        what: names the call, as in "schedule()".
        busy: seconds that the process may compute.
        idle: seconds on the clock.
    """
    if not _HAS_TIMERS or threading.current_thread() is not threading.main_thread():
        return nullcontext()
    return _Limits(
        clocks=(
            _Clock(what=what, timer=signal.ITIMER_VIRTUAL, signum=signal.SIGVTALRM, seconds=busy),
            _Clock(what=what, timer=signal.ITIMER_REAL, signum=signal.SIGALRM, seconds=idle),
        )
    )


@attrs.define(kw_only=True, eq=False)
class _Clock:
    """One timer of the process while a limit has it.

    No generator: an outer limit may run out while this one is being set, which then is never ended. Whoever collected a
    generator later would make it restore timers of limits that are long over; this one is simply forgotten, and the
    outer limit restores what it found itself.
    """

    what: str
    timer: int
    signum: signal.Signals
    seconds: float
    _before: tuple[Any, float, float] | None = None
    """Handler, seconds left and interval of the limit around this one; None while this one has not the timer."""

    def start(self) -> None:
        """Take the timer, unless a limit around this one ends sooner."""
        left, interval = signal.getitimer(self.timer)
        if 0 < left <= self.seconds:
            return
        self._before = (signal.signal(self.signum, self._expire), left, interval)
        # Again and again, in case that the first one is swallowed.
        signal.setitimer(self.timer, self.seconds, 1.0)

    def stop(self) -> None:
        """Give the timer back."""
        if self._before is None:
            return
        (handler, left, interval), self._before = self._before, None
        spent = self.seconds - signal.setitimer(self.timer, 0.0)[0]
        signal.signal(self.signum, handler)
        if left:
            signal.setitimer(self.timer, max(left - spent, 0.001), interval)

    def _expire(self, number: int, frame: FrameType | None) -> None:
        raise OutOfPatience(
            f"{self.what} does not return; it was given {self.seconds:g} seconds. Look for a loop without end."
        )


@attrs.frozen(kw_only=True, eq=False)
class _Limits:
    """Both clocks, set and given back together."""

    clocks: tuple[_Clock, ...]

    def __enter__(self) -> None:
        for clock in self.clocks:
            clock.start()

    def __exit__(self, *raised: object) -> None:
        for clock in reversed(self.clocks):
            clock.stop()
