"""What runs in a step, and who holds which pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from diffulex_core.pattern import IntArray
from diffulex_core.protocols.requests import Req
from diffulex_core.types import CompletionReason, StepOutput, StepPlan


@runtime_checkable
class KVCacheManager(Protocol):
    """Owner of the pages: who holds which, which are shared, which are free. Knows no tensors."""

    @property
    def page_size(self) -> int:
        """Slots per page."""
        ...

    @property
    def num_pages(self) -> int:
        """All pages, free or not."""
        ...

    @property
    def num_free_pages(self) -> int:
        """Pages that a reservation may take, cached but unused ones included."""
        ...

    def open(self, sequence: int, known: IntArray, prompt_len: int) -> int:
        """Start a sequence and take over shared pages that hold its first tokens.

        Args:
            sequence: id of no open sequence, any integer; one that was released may come again.
            known: [n] tokens that may be served from the cache.
        Returns:
            Number of leading slots that are stored already, a multiple of the page size.
        """
        ...

    def reserve(self, sequence: int, slots: int) -> None:
        """Make sure that the sequence's page table covers `slots` slots.

        Raises:
            OutOfPages: too few pages are free; nothing changed.
        """
        ...

    def commit(self, sequence: int, tokens: IntArray, slots: int) -> None:
        """Declare that K/V of `[0, slots)` are stored in their final form; whole pages become shareable.

        Args:
            tokens: [n] the sequence's tokens from position 0 that may serve others; a page stays private where they, or
                the first `slots` of them, do not cover all that its K/V depend on.
        """
        ...

    def stored(self, sequence: int) -> int:
        """Slots whose K/V are final."""
        ...

    def truncate(self, sequence: int, slots: int) -> None:
        """Give back the pages that `[0, slots)` does not need.

        Args:
            slots: at least those whose K/V are final.
        """
        ...

    def page_table(self, sequence: int) -> IntArray:
        """[pages] physical page ids of the sequence, a copy."""
        ...

    def release(self, sequence: int) -> None:
        """Give the sequence's pages back. A sequence that is not open is an error (KeyError)."""
        ...

    def check_integrity(self) -> None:
        """Raise AssertionError when the books do not balance."""
        ...


@runtime_checkable
class Scheduler(Protocol):
    """Decides what runs in each step and keeps every request's life cycle."""

    def add(self, request: Req) -> None:
        """Queue a request.

        Raises:
            PromptTooLong: it can never fit the token budget or the cache; nothing changed.
        """
        ...

    def abort(self, request_id: int, reason: CompletionReason = CompletionReason.ABORTED) -> bool:
        """End a waiting or running request now and free its pages; False when it is not here (any more)."""
        ...

    def schedule(self) -> StepPlan | None:
        """The next step, or None when nothing waits or runs."""
        ...

    def update(self, plan: StepPlan, output: StepOutput) -> Sequence[Req]:
        """Apply a step's decisions. Returns the requests that ended with it."""
        ...

    def has_work(self) -> bool:
        """Whether a request waits or runs, so that `schedule` has something to plan."""
        ...

    def check_integrity(self) -> None:
        """Raise AssertionError when a request is in two places or pages leak."""
        ...
