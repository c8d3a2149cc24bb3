"""What the requests of a step do together whose rules revise tokens, in a few operations on the blocks of all."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, chain, pairwise
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
import numpy as np

from diffulex_core.blocks.answers import answered, starts_of
from diffulex_core.blocks.grid import BlockGrid, GridAnswers, JointRule
from diffulex_core.blocks.rule import Outcome
from diffulex_core.blocks.state import BlockTable, Revision
from diffulex_core.pattern import IntArray, Phase
from diffulex_core.spans import CodedTerms
from diffulex_core.types import BoolArray, Decision, Outline, SampleGroup, SampleGroups, Spans

if TYPE_CHECKING:
    from diffulex_core.blocks.request import BlockRequest

Rule = TypeVar("Rule")


@attrs.frozen(kw_only=True)
class Revising:
    """A `ReqKind`: block-buffer requests whose rules are of one kind, each of which goes on as if it were alone.

    Attributes:
        rule: what the rules do together.
        block_size: tokens per block.
        shifted: whether the family's logits are.
    """

    rule: JointRule[Any]
    block_size: int
    shifted: bool

    def plan(self, requests: Sequence[BlockRequest], outlines: Sequence[Outline]) -> Spans:
        """As `BlockRequest.plan` for each."""
        numbers = np.fromiter(chain.from_iterable(outlines), dtype=np.int64).reshape(len(outlines), -1).T
        fed = [request.blocks.tokens[each.start : each.end] for request, each in zip(requests, outlines, strict=True)]
        start, end, active = numbers[0], numbers[1], numbers[4]
        counts = (end - active) // self.block_size
        # Of the running blocks only a request's first may hold some of its prompt.
        prompts = np.fromiter([request.prompt_len for request in requests], dtype=np.int64)
        of_prompt = np.where(counts > 0, np.maximum(prompts - active, 0), 0)
        asked = end - active - of_prompt
        positions = np.arange(int(asked.sum())) + np.repeat(active + of_prompt - starts_of(asked), asked)
        blocks = np.arange(int(counts.sum())) + np.repeat(active // self.block_size - starts_of(counts), counts)
        sizes, some = np.full(len(blocks), self.block_size), counts > 0
        sizes[starts_of(counts)[some]] -= of_prompt[some]
        discouraged, watched = self._questions(requests, counts.tolist(), end.tolist())
        return Spans(
            numbers=numbers,
            phases=[Phase.DECODE] * len(requests),
            advances=[True] * len(requests),
            tokens=np.concatenate(fed),
            groups=SampleGroups(
                blocks=blocks.tolist(),
                sizes=sizes.tolist(),
                positions=positions,
                rows=positions - np.repeat(start + self.shifted, asked),
                terms=CodedTerms(kinds=(self.rule.terms,), codes=np.zeros(len(blocks), dtype=np.int64)),
                discouraged=discouraged,
                watched=watched,
            ),
            counts=counts.tolist(),
            asked=asked.tolist(),
            blends=self.rule.blends([request.rule for request in requests], outlines),
        )

    def apply(self, requests: Sequence[BlockRequest], spans: Spans, decisions: Sequence[Decision]) -> None:
        """As `BlockRequest.apply` for each."""
        answered(requests, spans, decisions)
        ends = spans.end.tolist()
        grid = self._grid(requests, spans.counts, ends)
        answers = GridAnswers.of(grid, decisions)
        verdict = self.rule.judge([request.rule for request in requests], grid, answers)
        taken, bounds = grid.flat(verdict.changed), [*accumulate(spans.asked, initial=0)]
        for decision, (first, last) in zip(decisions, pairwise(bounds), strict=True):
            decision.accepted[:] = taken[first:last]
        tokens, decided = np.where(verdict.write, answers.proposed, grid.tokens), grid.decided | verdict.write
        if verdict.reopen is not None and verdict.reopen.any():
            fillers = np.repeat(np.array([request.blocks.fill_token for request in requests]), grid.counts)
            tokens[verdict.reopen] = np.broadcast_to(fillers[:, None], tokens.shape)[verdict.reopen]
            decided &= ~verdict.reopen
        revisions = self._revisions(requests, grid, ends, tokens, decided, verdict.open)
        of_each = (requests, revisions, ends, spans.keep.tolist(), spans.advances)
        for request, revision, end, keep, advances in zip(*of_each, strict=True):
            request.revised(revision, end, keep, advances)

    def _questions(
        self, requests: Sequence[BlockRequest], counts: Sequence[int], ends: Sequence[int]
    ) -> tuple[IntArray | None, IntArray | None]:
        """[n] the discouraged and the watched token of each position that is asked; None = none is."""
        if not self.rule.asks_of_tokens:
            return None, None
        grid = self._grid(requests, counts, ends)
        discouraged, watched = self.rule.discouraged(grid), self.rule.watched(grid)
        return (
            None if discouraged is None else grid.flat(discouraged),
            None if watched is None else grid.flat(watched),
        )

    def _grid(self, requests: Sequence[BlockRequest], counts: Sequence[int], ends: Sequence[int]) -> BlockGrid:
        """The last so many blocks of each request before its end."""
        size = self.block_size
        begins = [end - count * size for end, count in zip(ends, counts, strict=True)]
        bounds = [*zip([request.blocks for request in requests], begins, ends, strict=True)]
        tokens = [table.tokens[begin:end] for table, begin, end in bounds]
        decided = [table.decided[begin:end] for table, begin, end in bounds]
        many, first, prompts = np.array(counts), np.array(begins), np.array([each.prompt_len for each in requests])
        blocks = np.arange(int(many.sum())) + np.repeat(first // size - starts_of(many), many)
        editable = None
        if ((prompts > first) & (many > 0)).any():
            editable = blocks[:, None] * size + np.arange(size) >= np.repeat(prompts, many)[:, None]
        return BlockGrid(
            counts=counts,
            blocks=blocks,
            tokens=np.concatenate(tokens).reshape(-1, size),
            decided=np.concatenate(decided).reshape(-1, size),
            editable=editable,
        )

    def _revisions(
        self,
        requests: Sequence[BlockRequest],
        grid: BlockGrid,
        ends: Sequence[int],
        tokens: IntArray,
        decided: BoolArray,
        is_open: BoolArray,
    ) -> list[Revision]:
        """What each request's blocks are after the step.

        Args:
            grid: the blocks before it.
            tokens, decided: [b, block size] after it.
            is_open: [b] whether a block may still change.
        """
        masks = self.block_size - decided.sum(axis=1)
        bounds = np.array([0, *accumulate(grid.counts)])
        still_open = dict[int, list[int]]()
        complete = np.flatnonzero(is_open & (masks == 0))
        owners = (bounds.searchsorted(complete, side="right") - 1).tolist()
        for owner, block in zip(owners, grid.blocks[complete].tolist(), strict=True):
            still_open.setdefault(owner, []).append(block)
        stops = self._stops(requests, grid, bounds, tokens, decided)
        tokens, decided, cells = tokens.ravel(), decided.ravel(), bounds * self.block_size
        gaps = np.append(np.flatnonzero(~decided), len(decided))
        first_gaps = np.minimum(gaps[gaps.searchsorted(cells[:-1])], cells[1:])
        frontiers = (first_gaps - cells[1:] + np.array(ends)).tolist()
        of_blocks, of_cells, left = pairwise(bounds.tolist()), pairwise(cells.tolist()), masks.tolist()
        return [
            Revision(
                tokens[first:last],
                decided[first:last],
                left[head:tail],
                frontier,
                still_open.get(at, ()),
                stops.get(at),
            )
            for at, ((head, tail), (first, last), frontier) in enumerate(
                zip(of_blocks, of_cells, frontiers, strict=True)
            )
        ]

    def _stops(
        self,
        requests: Sequence[BlockRequest],
        grid: BlockGrid,
        bounds: IntArray,
        tokens: IntArray,
        decided: BoolArray,
    ) -> dict[int, int]:
        """By index of a request the position of the first stop token of its answer that may still change."""
        ids = frozenset[int]().union(*{request.stop_ids for request in requests})
        stops = dict[int, int]()
        if not ids:
            return stops
        found = decided & np.isin(tokens, [*ids])
        if grid.editable is not None:
            found &= grid.editable
        rows, columns = found.nonzero()
        owners = (bounds.searchsorted(rows, side="right") - 1).tolist()
        positions = (grid.blocks[rows] * self.block_size + columns).tolist()
        for owner, position, token in zip(owners, positions, tokens[found].tolist(), strict=True):
            if owner not in stops and token in requests[owner].stop_ids:
                stops[owner] = position
        return stops


def revise_alone(
    rule: Rule, joint: JointRule[Rule], table: BlockTable, groups: Sequence[SampleGroup], decision: Decision
) -> Outcome:
    """`BlockRule.apply` of one rule by what its kind does together."""
    if not groups:
        return Outcome(written=decision.positions[:0])
    size, first, last = table.block_size, groups[0].block, groups[-1].block + 1
    positions = np.arange(first * size, last * size).reshape(-1, size)
    grid = BlockGrid(
        counts=[last - first],
        blocks=np.arange(first, last),
        tokens=table.tokens[first * size : last * size].reshape(-1, size),
        decided=table.decided[first * size : last * size].reshape(-1, size),
        editable=positions >= groups[0].positions[0],
    )
    answers = GridAnswers.of(grid, [decision])
    verdict = joint.judge([rule], grid, answers)
    table.write(positions[verdict.write], answers.proposed[verdict.write])
    if verdict.reopen is not None:
        table.reopen(positions[verdict.reopen])
    return Outcome(written=positions[verdict.changed], open=frozenset(grid.blocks[verdict.open].tolist()))
