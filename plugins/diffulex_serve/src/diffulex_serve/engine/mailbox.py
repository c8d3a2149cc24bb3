"""What waits for a reader: a request's events, joined when they come faster than they are read."""

from __future__ import annotations

import asyncio
import contextlib

import attrs

from diffulex_serve.engine.messages import Ended, Logprob, Stepped


class Mailbox:
    """Holds at most one `Stepped` and the end, whoever reads and however slowly."""

    def __init__(self) -> None:
        self._step: Stepped | None = None
        self._end: Ended | BaseException | None = None
        self._filled = asyncio.Event()
        self._over = asyncio.Event()

    def put(self, event: Stepped | Ended) -> None:
        """Take an event in."""
        if isinstance(event, Ended):
            self._end = event
            self._over.set()
        else:
            self._step = event if self._step is None else joined(self._step, event)
        self._filled.set()

    def fail(self, error: BaseException) -> None:
        """End with an error, unless the end is here already."""
        if self._end is None:
            self._end = error
            self._over.set()
            self._filled.set()

    async def rest(self, seconds: float) -> None:
        """Wait so long, but not beyond the end."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._over.wait(), seconds)

    async def get(self) -> Stepped | Ended:
        """The next event; waits for it.

        Raises:
            EngineDied, EngineUnavailable: what `fail` was given.
        """
        while self._step is None and self._end is None:
            self._filled.clear()
            await self._filled.wait()
        if self._step is not None:
            step, self._step = self._step, None
            return step
        if isinstance(self._end, Ended):
            return self._end
        assert self._end is not None
        raise self._end


def joined(first: Stepped, second: Stepped) -> Stepped:
    """One step that changes what two consecutive ones do."""
    shows: dict[int, tuple[int, float, Logprob | None] | None] = {}
    for step in (first, second):
        logprobs = step.logprobs or (None,) * len(step.at)
        shows.update(zip(step.at, zip(step.tokens, step.confidence, logprobs, strict=True), strict=True))
        shows.update(dict.fromkeys(step.erased))
    written = [(at, shown) for at, shown in sorted(shows.items(), key=lambda item: item[0]) if shown is not None]
    return attrs.evolve(
        second,
        opened=first.opened + second.opened,
        at=tuple(at for at, _ in written),
        tokens=tuple(shown[0] for _, shown in written),
        confidence=tuple(shown[1] for _, shown in written),
        erased=tuple(sorted(at for at, shown in shows.items() if shown is None)),
        logprobs=tuple(shown[2] for _, shown in written) if first.logprobs or second.logprobs else (),
    )
