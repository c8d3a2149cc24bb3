"""Progress of long work: a bar for people, lines for logs."""

from __future__ import annotations

import logging
import time
from types import TracebackType

from tqdm import tqdm

logger = logging.getLogger(__name__)


class Progress:
    """Counts what is finished; a context manager."""

    def __init__(
        self,
        *,
        total: int,
        shown: bool,
        log_interval: float,
        unit: str = "prompt",
        doing: str = "Answering",
        done: str = "answered",
    ) -> None:
        self._bar = tqdm(total=total, disable=not shown, unit=unit, desc=doing)
        self._words = f"{unit}s {done}"
        self._total = total
        self._log_interval = log_interval
        self._began = self._logged = time.perf_counter()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.close()

    def update(self, *, done: int, tokens: int | None = None) -> None:
        """Show that `done` of them have ended, with `tokens` visible tokens in all where tokens are made."""
        now = time.perf_counter()
        elapsed = now - self._began
        if done > self._bar.n:
            if tokens is not None:
                self._bar.set_postfix_str(f"{tokens / elapsed:.0f} tok/s" if elapsed > 0 else "", refresh=False)
            self._bar.update(done - self._bar.n)
        if self._log_interval > 0 and now - self._logged >= self._log_interval and done < self._total:
            self._logged = now
            rest = f", about {elapsed / done * (self._total - done):.0f} s to go" if done else ""
            logger.info("%d of %d %s after %.0f s%s", done, self._total, self._words, elapsed, rest)
