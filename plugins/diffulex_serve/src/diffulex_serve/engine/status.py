"""How each engine behind a client is, for probes and metrics."""

from __future__ import annotations

import enum
import time
from collections.abc import Mapping

import attrs

from diffulex_serve.engine.messages import Load


class EngineState(enum.StrEnum):
    """Whether an engine takes requests."""

    NEW = "new"
    LOADING = "loading"
    READY = "ready"
    RESTARTING = "restarting"
    FAILED = "failed"
    CLOSED = "closed"


@attrs.frozen(kw_only=True)
class ReplicaStatus:
    """One engine, or the place of one that died.

    Attributes:
        state: whether it takes requests.
        load: its latest news.
        stepped_at: when it finished its latest step, by the monotonic clock; None before the first.
        requests: that were handed in and did not end.
        doing: what an engine that loads said last; empty otherwise.
        began: when the engine that is or was there last began to load, by the monotonic clock; None before.
        deaths: how many engines died in this place, or could not load, by the name of the error.
        restarts: how often another engine took the place of one that died.
        last_error: why the latest one died; None while none did.
    """

    state: EngineState
    load: Load
    stepped_at: float | None = None
    requests: int = 0
    doing: str = ""
    began: float | None = None
    deaths: Mapping[str, int] = attrs.field(factory=dict)
    restarts: int = 0
    last_error: str | None = None

    @property
    def running(self) -> int:
        """Requests in its latest step."""
        return min(self.load.requests, self.load.live)

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return self.load.live - self.running

    @property
    def step_age(self) -> float | None:
        """Seconds since its latest step; None before the first."""
        return None if self.stepped_at is None else time.monotonic() - self.stepped_at
