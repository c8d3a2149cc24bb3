"""A model runner whose network is the network of hashes, over paged memory of numbers."""

from __future__ import annotations

import numpy as np

from diffulex_core.packing import PackedStep, pack
from diffulex_core.pattern import AttentionPattern, IntArray
from diffulex_core.testing.fakes.network import LAYERS, choose, digest, embed, favourites, join, mix
from diffulex_core.types import CARRIED, Decision, SamplingBatch, StepOutput, StepPlan, Window


class HashRunner:
    """A model runner whose memory is a list of numbers for each layer.

    It reads second sequences (guidance) and keeps what a refresh asks for (the sparse cache); blended and recalled
    embeddings it does not know.

    Attributes:
        memory: the pair in each slot, layer by layer. Memory that nobody wrote holds numbers of its own.
        broken: requests whose logits come out non-finite, and whose pairs are as wrong as NaN.
        kept: the final hidden number of the rows that are needed again, by request.
    """

    def __init__(self, *, pattern: AttentionPattern, num_pages: int, page_size: int) -> None:
        self._pattern = pattern
        self._page_size = page_size
        slots = num_pages * page_size
        self.memory = [[hash((-1, layer, slot)) for slot in range(slots)] for layer in range(LAYERS)]
        self.broken: set[int] = set()
        self.kept: dict[int, int] = {}

    def execute(self, plan: StepPlan) -> StepOutput:
        """Write, read and decide; as `ModelRunner.execute`."""
        for request_id in plan.ended:
            self.kept.pop(request_id, None)
        step = pack(plan, self._pattern, [None], self._page_size)
        hidden = self._forward(plan.rows, step, self._damaged(plan))
        carried = iter(step.carried)
        deciding = [self.kept[next(carried)] if row == CARRIED else hidden[row] for row in step.head_rows.tolist()]
        for at, row, scale in zip(step.guided.at, step.guided.rows, step.guided.scale, strict=True):
            deciding[at] = join(deciding[at], hidden[row], float(scale))
        self.kept |= {request_id: hidden[row] for row, request_id in zip(step.kept_rows, step.kept, strict=True)}
        decisions = tuple(
            self._decide(window, np.flatnonzero(step.sampling.window_of_row == index), step.sampling, deciding)
            for index, window in enumerate(plan.windows)
        )
        return StepOutput(decisions=decisions, head_rows=len(step.head_rows))

    def close(self) -> None:
        """Nothing to free."""

    def _decide(self, window: Window, rows: IntArray, batch: SamplingBatch, deciding: list[int]) -> Decision:
        finite = window.request_id not in self.broken
        tokens, confidences, accepted = list[int](), list[float](), list[bool]()
        for group in np.unique(batch.group_of_row[rows]).tolist():
            members = rows[batch.group_of_row[rows] == group].tolist()
            found = [
                choose(window.params.seed or 0, window.draw, int(batch.positions[row]), deciding[row])
                for row in members
            ]
            sure = [confidence > batch.accept_threshold[group] for _, confidence in found]
            if not any(sure) and batch.force_one[group]:
                best = max(range(len(found)), key=lambda at: (found[at][1], -at))
                sure[best] = True
            tokens += [token for token, _ in found]
            confidences += [confidence for _, confidence in found]
            accepted += [finite and bool(each) for each in sure]
        return Decision(
            positions=batch.positions[rows],
            tokens=np.array(tokens, dtype=np.int64),
            confidence=np.array(confidences, dtype=np.float32),
            accepted=np.array(accepted, dtype=np.bool_),
            finite=finite,
        )

    def _damaged(self, plan: StepPlan) -> set[int]:
        """The sequences of broken requests, as a step numbers them: a second one follows its first."""
        owners = [window.request_id for window in plan.windows for _ in _tables(window)]
        return {index for index, request_id in enumerate(owners) if request_id in self.broken}

    def _forward(self, rows: int, step: PackedStep, damaged: set[int]) -> list[int]:
        """Final hidden numbers; K/V of all rows are written before any row of the layer reads."""
        layout = step.layout
        [visibility] = layout.visibility
        hidden = [embed(*row) for row in zip(step.input_ids.tolist(), layout.positions.tolist(), strict=True)][:rows]
        views = list(
            zip(layout.row_sequence.tolist(), visibility.key_start.tolist(), visibility.key_end.tolist(), strict=True)
        )[:rows]
        hidden = [
            hash((-2, row, view)) if view[0] in damaged else own
            for row, (own, view) in enumerate(zip(hidden, views, strict=True))
        ]
        for memory in self.memory:
            for slot, number in zip(layout.slots[:rows].tolist(), hidden, strict=True):
                if slot >= 0:
                    memory[slot] = number
            seen = {view: digest([memory[slot] for slot in self._slots(step, *view)]) for view in set(views)}
            for each in step.refreshes:
                region = range(each.start + each.refresh.start, each.start + each.refresh.end)
                outside = [hidden[row] for row in range(each.start, each.end) if row not in region]
                for slot, number in zip(each.slots.tolist(), favourites(outside, each.refresh.keep), strict=True):
                    memory[slot] = number
            hidden = [mix(own, seen[view]) for own, view in zip(hidden, views, strict=True)]
        return hidden

    def _slots(self, step: PackedStep, sequence: int, first: int, last: int) -> list[int]:
        keys = np.arange(first, last)
        slots: list[int] = (
            step.layout.page_tables[sequence, keys // self._page_size] * self._page_size + keys % self._page_size
        ).tolist()
        return slots


def _tables(window: Window) -> tuple[IntArray, ...]:
    if window.span.guidance is None or window.second_table is None:
        return (window.page_table,)
    return (window.page_table, window.second_table)
