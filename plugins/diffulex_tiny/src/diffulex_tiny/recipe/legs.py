"""Runs whose beginning is that of others: what depends on how much of a run has passed starts anew with each leg."""

from __future__ import annotations

Legs = tuple[tuple[int, int], ...]
"""Pairs of a step and a length: before that step the run goes on as one of that many steps."""


def length(step: int, steps: int, legs: Legs) -> int:
    """Steps of the run that one of `steps` steps follows at `step`."""
    return next((followed for until, followed in legs if step < until), steps)
