"""A limit on how long a call of code under test may take, so that a loop without end is a failure and not a hang."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

BUSY = 3.0
"""Seconds of computing that no call of the kit comes near to."""
IDLE = 60.0
"""Seconds on the clock for calls that wait for something; long, since machines are shared."""

_HAS_TIMERS = {"setitimer", "SIGVTALRM", "SIGALRM"} <= set(dir(signal))


class OutOfPatience(BaseException):
    """A call did not return. No `Exception`, so that nobody takes it for an error of theirs and tries again."""


@contextmanager
def patience(what: str, *, busy: float = BUSY, idle: float = IDLE) -> Iterator[None]:
    """Raise `OutOfPatience` when the body takes too long.

    Only the main thread of a system with interval timers can be interrupted; elsewhere there is no limit.

    Args:
        what: names the call, as in "schedule()".
        busy: seconds that the process may compute.
        idle: seconds on the clock.
    """
    with ExitStack() as limits:
        if _HAS_TIMERS and threading.current_thread() is threading.main_thread():
            limits.enter_context(_limit(what, signal.ITIMER_VIRTUAL, signal.SIGVTALRM, busy))
            limits.enter_context(_limit(what, signal.ITIMER_REAL, signal.SIGALRM, idle))
        yield


@contextmanager
def _limit(what: str, timer: int, signum: signal.Signals, seconds: float) -> Iterator[None]:
    left, interval = signal.getitimer(timer)
    if 0 < left <= seconds:
        # A limit around this one ends sooner.
        yield
        return

    def expire(number: int, frame: FrameType | None) -> None:
        raise OutOfPatience(f"{what} does not return; it was given {seconds:g} seconds. Look for a loop without end.")

    handler = signal.signal(signum, expire)
    # Again and again, in case that the first one is swallowed.
    signal.setitimer(timer, seconds, 1.0)
    try:
        yield
    finally:
        spent = seconds - signal.setitimer(timer, 0.0)[0]
        signal.signal(signum, handler)
        if left:
            signal.setitimer(timer, max(left - spent, 0.001), interval)
