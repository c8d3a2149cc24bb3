"""The rows of a step that are asked for something: which go through the head, and what for. Host side only."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import numpy as np

from diffulex_core.pattern import IntArray
from diffulex_core.types import CARRIED, FloatArray, Questions, SamplingBatch, StepPlan, Terms


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

    def __init__(self, plan: StepPlan, first_rows: IntArray) -> None:
        """`first_rows`: [windows] row of the batch that each window begins with."""
        self._windows = plan.windows
        self._groups = [window.span.groups for window in plan.windows]
        sizes = np.array([len(groups.rows) for groups in self._groups])
        self._bounds = np.concatenate(([0], np.cumsum(sizes))).tolist()
        self._window_of_row = np.repeat(np.arange(len(sizes)), sizes)
        self.head_rows: IntArray = np.concatenate([groups.rows for groups in self._groups])
        carried = np.flatnonzero(self.head_rows == CARRIED)
        self.head_rows += first_rows.take(self._window_of_row)
        self.head_rows[carried] = CARRIED
        self.carried = tuple(plan.windows[index].request_id for index in self._window_of_row[carried].tolist())

    def of(self, windows: Sequence[int]) -> IntArray:
        """[m] indices into `head_rows` of what some windows ask for."""
        parts = [np.arange(self._bounds[index], self._bounds[index + 1]) for index in windows]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def counts(self, windows: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """Some windows' requests, and how many rows each asks for."""
        return tuple((self._windows[index].request_id, len(self._groups[index].rows)) for index in windows)

    def guided(self) -> Guided:
        """Those that are joined with rows of second sequences, which follow their first in the batch."""
        found = [index for index, window in enumerate(self._windows) if window.span.guidance is not None]
        at, sizes = self.of(found), [count for _, count in self.counts(found)]
        spans = [self._windows[index].span for index in found]
        lengths = np.array([len(span.tokens) for span in spans], dtype=np.int64)
        scales = np.array([span.guidance.scale for span in spans if span.guidance is not None], dtype=np.float32)
        rows = self.head_rows[at]
        assert (rows != CARRIED).all(), "a second sequence keeps no rows"
        return Guided(at=at, rows=rows + np.repeat(lengths, sizes), scale=np.repeat(scales, sizes))

    def batch(self) -> SamplingBatch:
        """What the sampler is told of them."""
        terms = [each for groups in self._groups for each in groups.terms]
        # Groups share their terms, so that a few have to be looked at, whatever the number of groups.
        codes = {each: code for code, each in enumerate(dict.fromkeys(terms))}
        code_of_group = np.array([codes[each] for each in terms], dtype=np.int64)
        sizes = np.array([size for groups in self._groups for size in groups.sizes], dtype=np.int64)
        measures = [each.measure for each in codes]
        return SamplingBatch(
            positions=np.concatenate([groups.positions for groups in self._groups]),
            window_of_row=self._window_of_row,
            group_of_row=np.repeat(np.arange(len(sizes)), sizes),
            accept_threshold=np.array([each.accept_threshold for each in codes], dtype=np.float64)[code_of_group],
            force_one=np.array([each.force_one for each in codes], dtype=np.bool_)[code_of_group],
            greedy=np.array([each.greedy for each in codes], dtype=np.bool_)[code_of_group],
            windows=self._windows,
            clean_confidence=np.array([each.clean_confidence for each in codes], dtype=np.bool_)[code_of_group],
            measure=tuple([measures[code] for code in code_of_group.tolist()]),
            questions=self._questions(list(codes), code_of_group.repeat(sizes)),
        )

    def _questions(self, terms: Sequence[Terms], code_of_row: IntArray) -> Questions | None:
        most = max((each.alternatives for each in terms), default=0)
        naming = [each for each in self._groups if each.discouraged is not None or each.watched is not None]
        if not most and not naming:
            return None
        return Questions(
            most=most,
            discouraged=_tokens([(groups.discouraged, len(groups.rows)) for groups in self._groups]),
            penalty=np.array([each.penalty for each in terms])[code_of_row],
            watched=_tokens([(groups.watched, len(groups.rows)) for groups in self._groups]),
            raw=np.array([each.watched_raw for each in terms])[code_of_row],
        )


def _tokens(parts: Sequence[tuple[IntArray | None, int]]) -> IntArray:
    """[n] the token of each row, -1 where there is none."""
    return np.concatenate([np.full(size, -1) if tokens is None else tokens for tokens, size in parts])
