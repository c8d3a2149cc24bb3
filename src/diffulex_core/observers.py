"""Observers: step and request events for traces, metrics and profilers."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import attrs

if TYPE_CHECKING:
    from diffulex_core.types import CompletionReason, StepOutput, StepPlan


@runtime_checkable
class Observer(Protocol):
    """Watches an engine. It must not change what it is given, and it is called on the engine's own thread."""

    def on_request_added(self, request_id: int) -> None:
        """A request was accepted and waits."""
        ...

    def on_step(self, plan: StepPlan, output: StepOutput, seconds: float) -> None:
        """One forward was executed and its decisions were applied; `seconds` is the wall time of the step."""
        ...

    def on_request_finished(self, request_id: int, reason: CompletionReason) -> None:
        """A request ended, for whatever reason; follows the `on_step` that ended it."""
        ...

    def close(self) -> None:
        """The engine closes; write out what is buffered. Called once."""
        ...


@attrs.frozen
class CompositeObserver:
    """Passes every event on to each of its observers, in order; an `Observer` itself."""

    observers: tuple[Observer, ...] = ()

    def on_request_added(self, request_id: int) -> None:
        for observer in self.observers:
            observer.on_request_added(request_id)

    def on_step(self, plan: StepPlan, output: StepOutput, seconds: float) -> None:
        for observer in self.observers:
            observer.on_step(plan, output, seconds)

    def on_request_finished(self, request_id: int, reason: CompletionReason) -> None:
        for observer in self.observers:
            observer.on_request_finished(request_id, reason)

    def close(self) -> None:
        """Close all observers, also when one of them raises; its error is raised afterwards."""
        with ExitStack() as stack:
            for observer in reversed(self.observers):
                stack.callback(observer.close)


def combine(observers: Iterable[Observer | None]) -> CompositeObserver:
    """One observer out of several; `None` (a hook without interest) is left out."""
    return CompositeObserver(tuple(observer for observer in observers if observer is not None))
