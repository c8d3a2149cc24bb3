"""The blends of several spans, column by column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import attrs
import numpy as np
from numpy.typing import NDArray

from diffulex_core.pattern import IntArray
from diffulex_core.spans import Blends, BoolArray, FloatArray, Span

Numbers = TypeVar("Numbers", bound=np.number[Any])


@attrs.frozen(kw_only=True, eq=False)
class BlendColumns:
    """Rows that are fed weighted sums of embeddings.

    Attributes:
        rows: [n] which they are among the rows of all spans, ascending.
        ids: [n, k] token ids.
        weights: [n, k] float32 weight of each embedding; 0 where a row has fewer than k.
        match_norm: [n] bool: scale the sum to the weighted sum of the norms.
    """

    rows: IntArray
    ids: IntArray
    weights: FloatArray
    match_norm: BoolArray

    @classmethod
    def of(cls, spans: Sequence[Span]) -> BlendColumns | None:
        """Those of some spans; None where no row is blended."""
        parts, begin = list[tuple[int, BlendColumns]](), 0
        for span in spans:
            blends = span.blends
            if blends is not None and len(blends.positions):
                own = cls(
                    rows=blends.positions - span.start,
                    ids=blends.ids,
                    weights=blends.weights,
                    match_norm=np.full(len(blends.positions), blends.match_norm),
                )
                parts.append((begin, own))
            begin += len(span.tokens)
        return cls.joined(parts)

    @classmethod
    def joined(cls, parts: Sequence[tuple[int, BlendColumns]]) -> BlendColumns | None:
        """All parts, with the rows before each; those with fewer ids are filled up with weight 0."""
        if len(parts) < 2:
            return next((attrs.evolve(part, rows=part.rows + before) for before, part in parts), None)
        width = max(part.ids.shape[1] for _, part in parts)
        return cls(
            rows=np.concatenate([part.rows + before for before, part in parts]),
            ids=np.concatenate([_widened(part.ids, width) for _, part in parts]),
            weights=np.concatenate([_widened(part.weights, width) for _, part in parts]),
            match_norm=np.concatenate([part.match_norm for _, part in parts]),
        )

    def within(self, begin: int, end: int, start: int) -> Blends | None:
        """Those of the rows `[begin, end)`, the first of which is at position `start`; None where there are none."""
        first, last = self.rows.searchsorted((begin, end)).tolist()
        if first == last:
            return None
        own = slice(first, last)
        return Blends(
            positions=self.rows[own] - begin + start,
            ids=self.ids[own],
            weights=self.weights[own],
            match_norm=bool(self.match_norm[first]),
        )


def _widened(values: NDArray[Numbers], width: int) -> NDArray[Numbers]:
    return np.pad(values, ((0, 0), (0, width - values.shape[1])))
