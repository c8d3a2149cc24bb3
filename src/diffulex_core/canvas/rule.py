"""What a canvas asks the sampler, and what it takes of the answer: the seam between canvas and algorithm."""

from __future__ import annotations

from typing import Protocol

import attrs

from diffulex_core.pattern import IntArray
from diffulex_core.types import BoolArray, FloatArray


@attrs.frozen(kw_only=True)
class Region:
    """The part of a canvas that is being decided: a block, or all of it.

    Attributes:
        start, end: `[start, end)`.
        last: the next step decides all that is left of it, whatever the sampler proposes.
    """

    start: int
    end: int
    last: bool


class CanvasRule(Protocol):
    """One request's way from masks to tokens, step by step. Positions count from the canvas's first.

    The rule knows how many steps were taken; the canvas knows what is decided.
    """

    @property
    def measure(self) -> str:
        """What confidence is (`SampleGroup.measure`)."""
        ...

    @property
    def clean(self) -> bool:
        """Whether confidence ignores temperature and limits (`SampleGroup.clean_confidence`)."""
        ...

    def ask(self, open: IntArray) -> IntArray:
        """Which positions are sampled in the next step; changes nothing.

        Args:
            open: [n] undecided positions, ascending, at least one.
        Returns:
            Some of them, ascending; none in a step that is taken for its own sake.
        """
        ...

    def choose(self, open: IntArray, asked: IntArray, tokens: IntArray, confidence: FloatArray) -> BoolArray:
        """Which of the `asked` positions take their tokens. The step is over then.

        Args:
            open: [n] undecided positions before the step.
            asked: [m] what `ask` gave for them.
            tokens, confidence: [m] the sampler's proposals.
        """
        ...

    def region(self, open: IntArray) -> Region:
        """What the next step works on: it holds all that `ask` gives for the same positions.

        As long as it stays the same, a sparse cache takes what is outside it for settled.

        Args:
            open: [n] undecided positions, ascending, at least one.
        """
        ...

    def left(self, open: IntArray) -> int | None:
        """Forwards that deciding the rest takes; None where that depends on what the sampler proposes.

        Args:
            open: [n] undecided positions, ascending.
        """
        ...
