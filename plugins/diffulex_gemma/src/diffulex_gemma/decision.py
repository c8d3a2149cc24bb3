"""What the sampler says of a canvas; importing this imports no torch."""

from __future__ import annotations

import attrs

from diffulex_core.plugin import Decision, FloatArray, IntArray


@attrs.frozen(kw_only=True, eq=False)
class CanvasDecision(Decision):
    """A decision whose `tokens` are the most probable ones. None is accepted before the whole canvas is.

    Attributes:
        drawn: [n] int64 token that was drawn for each position.
        entropy: [n] float64 in nats.
    """

    drawn: IntArray
    entropy: FloatArray
