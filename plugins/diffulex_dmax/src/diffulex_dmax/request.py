"""The request of dmax: the block-buffer request under a rule that revises tokens and merges embeddings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from diffulex_core.blocks import BlockRequest, BlockTable, Outcome, proposals, revision
from diffulex_core.plugin import (
    Alternatives,
    AttentionPattern,
    Blends,
    BlockCausal,
    Decision,
    IntArray,
    ReqContext,
    SampleGroup,
    SamplingParams,
)
from diffulex_dmax.leftmost import judge
from diffulex_dmax.merging import Merges
from diffulex_dmax.options import DMaxOptions


def block_causal(block_size: int) -> AttentionPattern:
    """Every row sees everything up to the end of its own block."""
    return BlockCausal(block_size=block_size)


def dmax_request(*, request_id: int, prompt: IntArray, params: SamplingParams, context: ReqContext) -> BlockRequest:
    """A `ReqFactory`: the block-buffer request under `DMaxRule`."""
    options, mask = context.options, context.mask_token_id
    assert isinstance(options, DMaxOptions), "the strategy's config_cls is DMaxOptions"
    assert mask is not None, "the strategy requires the mask_token capability"
    accept = params.resolve_thresholds(context.thresholds).accept_threshold
    merges = Merges(options, mask_token_id=mask, vocab_size=context.vocab_size)
    rule = DMaxRule(accept=accept, options=options, block_size=context.pattern.block_size, merges=merges)
    return BlockRequest(request_id=request_id, prompt=prompt, params=params, context=context, rule=rule)


class DMaxRule:
    """Masks are filled from the left, decided tokens refreshed in every step, and both are fed as blends."""

    def __init__(self, *, accept: float, options: DMaxOptions, block_size: int, merges: Merges) -> None:
        self._accept = accept
        self._options = options
        self._block_size = block_size
        self._merges = merges
        self._full_steps: Counter[int] = Counter()
        """Forwards in which each running block had no mask."""
        self._stability: dict[int, float] = {}

    @property
    def revises(self) -> bool:
        """Decided tokens are asked again."""
        return True

    @property
    def tokens_suffice(self) -> bool:
        """Blended positions' K/V depend on more than their tokens."""
        return not self._options.merges

    def groups(self, table: BlockTable, blocks: range, origin: int) -> list[SampleGroup]:
        """All positions that are not prompt."""
        probable = self._merges.alternatives
        return [revision(table, block, origin, measure="prob", alternatives=probable) for block in blocks]

    def apply(self, table: BlockTable, groups: Sequence[SampleGroup], decision: Decision) -> Outcome:
        """Judge block by block, and remember what is to be fed of it."""
        written, still_open = [decision.positions[:0]], set[int]()
        for group, rows in zip(groups, proposals(groups, decision), strict=True):
            block, positions, decided = group.block, group.positions, table.decided[group.positions]
            self._full_steps[block] += bool(decided.all())
            verdict = judge(
                tokens=table.tokens[positions],
                decided=decided,
                proposed=decision.tokens[rows],
                confidence=decision.confidence[rows],
                accept=self._accept,
                confident=self._options.confident_commit_threshold,
                exact=self._options.exact,
            )
            self._stability[block] = verdict.stability
            table.write(positions[verdict.write], decision.tokens[rows][verdict.write])
            written.append(positions[verdict.changed])
            self._merges.replace(
                block,
                positions=positions,
                tokens=table.tokens[positions],
                confidence=verdict.confidence,
                decided=verdict.write,
                probable=_of(decision.alternatives, rows),
            )
            if not verdict.settled and self._full_steps[block] <= self._options.max_post_edit_steps:
                still_open.add(block)
        return Outcome(written=np.concatenate(written), open=frozenset(still_open))

    def stability(self, table: BlockTable, block: int) -> float:
        """As of the block's latest step; 0 before the first."""
        return self._stability.get(block, 0.0)

    def blends(self, start: int, end: int) -> Blends | None:
        """The descriptors of the positions, those of stored blocks included."""
        return self._merges.between(start, end, self._block_size)


def _of(alternatives: Alternatives | None, rows: slice) -> Alternatives | None:
    """The alternatives of some of the rows."""
    if alternatives is None:
        return None
    return Alternatives(tokens=alternatives.tokens[rows], probabilities=alternatives.probabilities[rows])
