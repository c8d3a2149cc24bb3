"""A model runner without a model: what it decides is written down beforehand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
import numpy as np

from diffulex_core.types import Decision, SampleGroup, StepOutput, StepPlan, Window


@attrs.frozen
class ScriptedRunner:
    """It accepts the positions that a script names, with the tokens that it names.

    Attributes:
        take: the positions of a group that are accepted in this step.
        token_at: the token of a position of a request.
    """

    take: Callable[[Window, SampleGroup], Sequence[int]]
    token_at: Callable[[Window, int], int]

    def execute(self, plan: StepPlan) -> StepOutput:
        """Decide by the script; as `ModelRunner.execute`."""
        return StepOutput(decisions=tuple(self._decide(window) for window in plan.windows), head_rows=0)

    def close(self) -> None:
        """Nothing to free."""

    def _decide(self, window: Window) -> Decision:
        asked = [int(position) for group in window.span.groups for position in group.positions]
        taken = {int(position) for group in window.span.groups for position in self.take(window, group)}
        return Decision(
            positions=np.array(asked, dtype=np.int64),
            tokens=np.array([self.token_at(window, position) for position in asked], dtype=np.int64),
            confidence=np.full(len(asked), 0.5, dtype=np.float32),
            accepted=np.array([position in taken for position in asked], dtype=np.bool_),
        )


def all_at_once(window: Window, group: SampleGroup) -> Sequence[int]:
    """A script's `take`: everything that is asked."""
    positions: list[int] = group.positions.tolist()
    return positions


def one_at_a_time(window: Window, group: SampleGroup) -> Sequence[int]:
    """A script's `take`: the first position of each group."""
    return all_at_once(window, group)[:1]
