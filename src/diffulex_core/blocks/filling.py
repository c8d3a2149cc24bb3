"""What the mask-filling requests of a step do together, in a few operations on the rows of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, chain
from typing import TYPE_CHECKING

import attrs
import numpy as np

from diffulex_core.blocks.answers import answered, starts_of
from diffulex_core.blocks.rule import Fill
from diffulex_core.pattern import IntArray, Phase
from diffulex_core.spans import CodedTerms
from diffulex_core.types import BoolArray, Decision, Outline, SampleGroups, Spans

if TYPE_CHECKING:
    from diffulex_core.blocks.request import BlockRequest


@attrs.frozen(kw_only=True)
class Filling:
    """A `ReqKind`: block-buffer requests that fill masks by the same rule, each of which goes on as if it were alone.

    Attributes:
        fill: the rule.
        block_size: tokens per block.
        shifted: whether the family's logits are.
    """

    fill: Fill
    block_size: int
    shifted: bool

    def plan(self, requests: Sequence[BlockRequest], outlines: Sequence[Outline]) -> Spans:
        """As `BlockRequest.plan` for each."""
        numbers = np.fromiter(chain.from_iterable(outlines), dtype=np.int64).reshape(len(outlines), -1).T
        tokens, decided, masks = list[IntArray](), list[BoolArray](), list[int]()
        for request, (start, end, _, _, active, _) in zip(requests, outlines, strict=True):
            table = request.blocks
            tokens.append(table.tokens[start:end])
            decided.append(table.decided[active:end])
            masks += table.masks_from(active, end)
        start, end, active = numbers[0], numbers[1], numbers[4]
        running = (end - active) // self.block_size
        owners = np.repeat(np.arange(len(requests)), running)
        counted = np.arange(len(owners))
        # `masks` holds one more for each request: of the block before its first.
        before = np.fromiter(masks, dtype=np.int64)
        left, before = before[counted + owners + 1], before[counted + owners]
        blocks = counted + np.repeat(active // self.block_size - starts_of(running), running)
        some = left > 0
        if not some.all():
            left, before, blocks, owners = left[some], before[some], blocks[some], owners[some]
        asked = np.bincount(owners, weights=left, minlength=len(requests)).astype(np.int64)
        undecided = np.flatnonzero(~np.concatenate(decided))
        positions = undecided + np.repeat(active - starts_of(end - active), asked)
        return Spans(
            numbers=numbers,
            phases=[Phase.DECODE] * len(requests),
            advances=[True] * len(requests),
            tokens=np.concatenate(tokens),
            groups=SampleGroups(
                blocks=blocks.tolist(),
                sizes=left.tolist(),
                positions=positions,
                rows=positions - np.repeat(start + self.shifted, asked),
                terms=self._terms(blocks, before),
            ),
            counts=np.bincount(owners, minlength=len(requests)).tolist(),
            asked=asked.tolist(),
        )

    def apply(self, requests: Sequence[BlockRequest], spans: Spans, decisions: Sequence[Decision]) -> None:
        """As `BlockRequest.apply` for each."""
        positions = answered(requests, spans, decisions)
        accepted = np.concatenate([decision.accepted for decision in decisions])
        taken = np.flatnonzero(accepted)
        tokens = np.concatenate([decision.tokens for decision in decisions])[taken]
        positions = positions[taken]
        bounds = taken.searchsorted([*accumulate(spans.asked, initial=0)]).tolist()
        of_each = (requests, bounds, bounds[1:], spans.end.tolist(), spans.keep.tolist(), spans.advances)
        for request, first, last, end, keep, advances in zip(*of_each, strict=False):
            request.filled(positions[first:last], tokens[first:last], end, keep, advances)

    def _terms(self, blocks: IntArray, before: IntArray) -> CodedTerms:
        """Of some blocks, given the masks of the block before each."""
        fill = self.fill
        if fill.force_rule == "always":
            forces = np.ones(len(blocks), dtype=np.int64)
        else:
            progress = (self.block_size - before) / self.block_size
            forces = ((blocks == 0) | (progress >= fill.thresholds.semi_complete_threshold)).astype(np.int64)
        return CodedTerms(kinds=(fill.waiting, fill.forcing), codes=forces)
