"""A network of hashes over paged memory: whatever a row reads wrongly changes what it decides.

A layer's key/value pair is the row's hidden number before the layer; attention hashes all visible pairs in order. So a
pair of a later layer depends on everything that its row saw when it was computed, as in a transformer: a wrong page,
a wrong slot, a stale pair, or visibility that is off by one ends in other tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
import numpy as np

from diffulex_core.packing import PackedStep, pack
from diffulex_core.pattern import AttentionPattern
from diffulex_core.types import CARRIED, Decision, SampleGroup, StepOutput, StepPlan, Window

WORDS = 12
"""Tokens 0 .. WORDS - 1 are decided; `EOS` is one of them."""
EOS = 7
MASK = 99
LAYERS = 3

_TOP = 2**64
_PRIME = 0x9E3779B97F4A7C15


def embed(token: int, position: int) -> int:
    """Hidden number before the first layer."""
    return hash((token, position))


def digest(pairs: Sequence[int]) -> int:
    """What attention makes of the visible pairs of one layer."""
    return hash(tuple(pairs))


def mix(hidden: int, attended: int) -> int:
    """Hidden number after a layer."""
    return hash((hidden, attended))


def choose(seed: int, draw: int, position: int, hidden: int) -> tuple[int, float]:
    """The token that a row's final hidden number stands for in step `draw` of a request, and a confidence in [0, 1)."""
    number = hash((seed, draw, position, hidden)) * _PRIME % _TOP
    number ^= number >> 29
    number = number * 0xBF58476D1CE4E5B9 % _TOP
    return number % WORDS, (number >> 40) / 2.0**24


class HashRunner:
    """A model runner whose network is the hash network and whose memory is a list of numbers for each layer.

    Memory that nobody wrote holds numbers of its own. `broken` names requests whose logits come out non-finite. `kept`
    holds the final hidden number of the rows that are needed again, by request.
    """

    def __init__(self, *, pattern: AttentionPattern, num_pages: int, page_size: int) -> None:
        self._pattern = pattern
        self._page_size = page_size
        slots = num_pages * page_size
        self.memory = [[hash((-1, layer, slot)) for slot in range(slots)] for layer in range(LAYERS)]
        self.broken: set[int] = set()
        self.kept: dict[int, int] = {}

    def execute(self, plan: StepPlan) -> StepOutput:
        for request_id in plan.ended:
            self.kept.pop(request_id, None)
        step = pack(plan, self._pattern, [None], self._page_size)
        hidden = self._forward(plan.rows, step)
        batch = step.sampling
        carried = iter(step.carried)
        deciding = [self.kept[next(carried)] if row == CARRIED else hidden[row] for row in step.head_rows.tolist()]
        self.kept |= {request_id: hidden[row] for row, request_id in zip(step.kept_rows, step.kept, strict=True)}
        decisions = []
        for index, window in enumerate(plan.windows):
            finite = window.request_id not in self.broken
            tokens, confidences, accepted = [], [], []
            rows = np.flatnonzero(batch.window_of_row == index)
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
                accepted += [finite and each for each in sure]
            decisions.append(
                Decision(
                    positions=batch.positions[rows],
                    tokens=np.array(tokens, dtype=np.int64),
                    confidence=np.array(confidences, dtype=np.float32),
                    accepted=np.array(accepted, dtype=np.bool_),
                    finite=finite,
                )
            )
        return StepOutput(decisions=tuple(decisions), head_rows=len(step.head_rows))

    def close(self) -> None:
        """Nothing to free."""

    def _forward(self, rows: int, step: PackedStep) -> list[int]:
        """Final hidden numbers; K/V of all rows are written before any row of the layer reads."""
        [visibility] = step.visibility
        hidden = [embed(*row) for row in zip(step.input_ids.tolist(), step.positions.tolist(), strict=True)][:rows]
        views = list(
            zip(step.row_sequence.tolist(), visibility.key_start.tolist(), visibility.key_end.tolist(), strict=True)
        )[:rows]
        for memory in self.memory:
            for slot, number in zip(step.slots[:rows].tolist(), hidden, strict=True):
                if slot >= 0:
                    memory[slot] = number
            seen = {view: digest([memory[slot] for slot in self._slots(step, *view)]) for view in set(views)}
            hidden = [mix(own, seen[view]) for own, view in zip(hidden, views, strict=True)]
        return hidden

    def _slots(self, step: PackedStep, sequence: int, first: int, last: int) -> list[int]:
        keys = np.arange(first, last)
        slots: list[int] = (
            step.page_tables[sequence, keys // self._page_size] * self._page_size + keys % self._page_size
        ).tolist()
        return slots


@attrs.frozen
class ScriptedRunner:
    """A model runner without a model: it accepts the positions that `take` names, with the tokens of `token_at`."""

    take: Callable[[Window, SampleGroup], Sequence[int]]
    token_at: Callable[[int], int]

    def execute(self, plan: StepPlan) -> StepOutput:
        return StepOutput(decisions=tuple(self._decide(window) for window in plan.windows), head_rows=0)

    def close(self) -> None:
        """Nothing to free."""

    def _decide(self, window: Window) -> Decision:
        asked = [int(position) for group in window.span.groups for position in group.positions]
        taken = {int(position) for group in window.span.groups for position in self.take(window, group)}
        return Decision(
            positions=np.array(asked, dtype=np.int64),
            tokens=np.array([self.token_at(position) for position in asked], dtype=np.int64),
            confidence=np.full(len(asked), 0.5, dtype=np.float32),
            accepted=np.array([position in taken for position in asked], dtype=np.bool_),
        )
