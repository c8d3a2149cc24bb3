"""The rows of a step that are asked for something: which go through the head, and what for. Host side only."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import attrs
import numpy as np

from diffulex_core.pattern import IntArray
from diffulex_core.spans import CodedTerms
from diffulex_core.types import CARRIED, FloatArray, Questions, SamplingBatch, Terms, Windows


@attrs.frozen(kw_only=True, eq=False)
class Guided:
    """Rows whose logits are joined with those of a second row (classifier-free guidance).

    Attributes:
        at: [g] index into the head's rows, ascending.
        rows: [g] row of the batch that each is joined with.
        scale: [g] float32 weight of guidance.
    """

    at: IntArray
    rows: IntArray
    scale: FloatArray


class AskedRows:
    """The rows that the groups of a plan's windows ask for, window by window.

    Attributes:
        head_rows: [n] rows of the batch; `CARRIED` where it is one of an earlier step.
        carried: requests whose kept rows those are, one for each `CARRIED` in `head_rows`.
    """

    def __init__(self, windows: Windows, first_rows: IntArray) -> None:
        """`first_rows`: [windows] row of the batch that each window begins with."""
        self._windows = windows
        self._groups = windows.spans.groups
        sizes = windows.spans.asked
        self._bounds = [*accumulate(sizes, initial=0)]
        self._window_of_row = np.repeat(np.arange(len(sizes)), sizes)
        carried = np.flatnonzero(self._groups.rows == CARRIED)
        self.head_rows: IntArray = self._groups.rows + np.repeat(first_rows, sizes)
        self.head_rows[carried] = CARRIED
        self.carried = tuple([windows.request_ids[index] for index in self._window_of_row[carried].tolist()])

    def of(self, windows: Sequence[int]) -> IntArray:
        """[m] indices into `head_rows` of what some windows ask for."""
        parts = [np.arange(self._bounds[index], self._bounds[index + 1]) for index in windows]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def counts(self, windows: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """Some windows' requests, and how many rows each asks for."""
        return tuple((self._windows.request_ids[index], self._windows.spans.asked[index]) for index in windows)

    def guided(self) -> Guided:
        """Those that are joined with rows of second sequences, which follow their first in the batch."""
        guided = {at: span for at, span in self._windows.spans.special.items() if span.guidance is not None}
        at, sizes = self.of([*guided]), [self._windows.spans.asked[index] for index in guided]
        lengths = np.array([len(span.tokens) for span in guided.values()], dtype=np.int64)
        scales = np.array([s.guidance.scale for s in guided.values() if s.guidance is not None], dtype=np.float32)
        rows = self.head_rows[at]
        assert (rows != CARRIED).all(), "a second sequence keeps no rows"
        return Guided(at=at, rows=rows + np.repeat(lengths, sizes), scale=np.repeat(scales, sizes))

    def batch(self) -> SamplingBatch:
        """What the sampler is told of them."""
        # Groups share their terms, so that a few have to be looked at, whatever the number of groups.
        terms = CodedTerms.of(self._groups.terms)
        kinds, code_of_group, sizes = terms.kinds, terms.codes, self._groups.sizes
        measures = [each.measure for each in kinds]
        return SamplingBatch(
            positions=self._groups.positions,
            window_of_row=self._window_of_row,
            group_of_row=np.repeat(np.arange(len(sizes)), sizes),
            accept_threshold=np.array([each.accept_threshold for each in kinds], dtype=np.float64)[code_of_group],
            force_one=np.array([each.force_one for each in kinds], dtype=np.bool_)[code_of_group],
            greedy=np.array([each.greedy for each in kinds], dtype=np.bool_)[code_of_group],
            windows=self._windows,
            clean_confidence=np.array([each.clean_confidence for each in kinds], dtype=np.bool_)[code_of_group],
            measure=tuple([measures[code] for code in code_of_group.tolist()]),
            questions=self._questions(kinds, code_of_group.repeat(sizes)),
        )

    def _questions(self, terms: Sequence[Terms], code_of_row: IntArray) -> Questions | None:
        groups, most = self._groups, max((each.alternatives for each in terms), default=0)
        if not most and groups.discouraged is None and groups.watched is None:
            return None
        return Questions(
            most=most,
            discouraged=_tokens(groups.discouraged, len(code_of_row)),
            penalty=np.array([each.penalty for each in terms])[code_of_row],
            watched=_tokens(groups.watched, len(code_of_row)),
            raw=np.array([each.watched_raw for each in terms])[code_of_row],
        )


def _tokens(tokens: IntArray | None, count: int) -> IntArray:
    """[n] the token of each row, -1 where there is none."""
    return np.full(count, -1) if tokens is None else tokens
