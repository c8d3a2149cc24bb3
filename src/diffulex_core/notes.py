"""What a step did, on its way into the records of its requests."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

from diffulex_core.tracking import Forward, Ticket
from diffulex_core.types import Canvas, StepOutput, StepPlan, Windows


class StepNotes:
    """Notes of one step. Nobody reads the record of a request that goes on, so its note may wait for leisure."""

    def __init__(
        self,
        plan: StepPlan,
        output: StepOutput,
        *,
        tickets: Mapping[int, Ticket],
        canvases: Mapping[int, Canvas],
        began: float,
        ended: float,
    ) -> None:
        """
        Args:
            plan, output: the step.
            tickets: the records of its requests; those that leave before `write_rest` were written before.
            canvases: as they were before the step, where traces are kept.
            began, ended: as in `Forward`.
        """
        self._plan, self._output, self._began, self._ended = plan, output, began, ended
        self._tickets, self._canvases = tickets, canvases
        windows = plan.windows
        ids = windows.request_ids if isinstance(windows, Windows) else [window.request_id for window in windows]
        self._left = {request_id: at for at, request_id in enumerate(ids)}

    def write(self, request_id: int) -> None:
        """Put the request's note into its record, unless it is there or there is none."""
        at = self._left.pop(request_id, None)
        if at is not None:
            self._tickets[request_id].note(self._forward, at, self._canvases.get(request_id))

    def write_rest(self) -> None:
        """Put the notes that are left into their records."""
        left, tickets, forward, canvases = self._left, self._tickets, self._forward, self._canvases
        while left:
            request_id, at = left.popitem()
            tickets[request_id].note(forward, at, canvases.get(request_id))

    @cached_property
    def _forward(self) -> Forward:
        return Forward.of(self._plan, self._output, began=self._began, ended=self._ended)
