"""Block-buffer requests that do not heed what a user asks for, or what the runner keeps."""

from __future__ import annotations

from typing import Any, ClassVar

import attrs

from diffulex_core.blocks import BlockRequest
from diffulex_core.pattern import Phase
from diffulex_core.req_context import ReqContext
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.types import Decision, Span


class _Without(BlockRequest):
    """A request that is made with other parameters than it was given."""

    changed: ClassVar[dict[str, Any]]

    def __init__(self, *, params: SamplingParams, **others: Any) -> None:
        super().__init__(params=attrs.evolve(params, **self.changed), **others)


class KnowsOneStopToken(_Without):
    """`stop_token_ids` are ignored."""

    changed: ClassVar = {"stop_token_ids": ()}


class IgnoresRepetition(_Without):
    """`max_repetition_run` is ignored."""

    changed: ClassVar = {"max_repetition_run": None}


class OutgrowsTheModel(BlockRequest):
    """`max_model_len` is ignored."""

    def __init__(self, *, context: ReqContext, **others: Any) -> None:
        super().__init__(context=attrs.evolve(context, max_model_len=10_000), **others)


class _OtherGroups(BlockRequest):
    """A request that asks its groups otherwise."""

    changed: ClassVar[dict[str, Any]]

    def _advance(self, start: int, phase: Phase) -> Span:
        span = super()._advance(start, phase)
        return attrs.evolve(span, groups=tuple(attrs.evolve(group, **self.changed) for group in span.groups))


class NeverForces(_OtherGroups):
    """A block waits until a token passes the threshold."""

    changed: ClassVar = {"force_one": False}


class IsAlwaysGreedy(_OtherGroups):
    """Temperature and seed are ignored."""

    changed: ClassVar = {"greedy": True}


class ForgetsWhatItLacks(BlockRequest):
    """With shifted logits the row before the first block is taken for kept, wherever its pages came from."""

    def _lacks_row_before(self, position: int) -> bool:
        return False


class KeepsTheRowBefore(BlockRequest):
    """With shifted logits the last row but one is kept, and taken for the last."""

    def _row_to_keep(self, start: int, store_until: int) -> int | None:
        last = super()._row_to_keep(start, store_until)
        return None if last is None else max(start, last - 1)

    def apply(self, span: Span, decision: Decision) -> None:
        super().apply(span, decision)
        if span.keep is not None:
            self._carried = span.keep + 1
