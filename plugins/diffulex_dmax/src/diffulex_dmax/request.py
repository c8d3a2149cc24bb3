"""The request of dmax: the block-buffer request under a rule that revises tokens and merges embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from math import inf

import attrs
import numpy as np

from diffulex_core.blocks import (
    BlendColumns,
    BlockGrid,
    BlockRequest,
    BlockTable,
    GridAnswers,
    GridVerdict,
    Outcome,
    PerBlock,
    numbers_of,
    revise_alone,
    revision,
    write_numbers,
)
from diffulex_core.plugin import (
    AttentionPattern,
    Blends,
    BlockCausal,
    BoolArray,
    Decision,
    FloatArray,
    IntArray,
    Outline,
    ReqContext,
    SampleGroup,
    SamplingParams,
    Terms,
)
from diffulex_dmax.leftmost import judge
from diffulex_dmax.merging import MergeRule, Merges, blended
from diffulex_dmax.options import DMaxOptions


def block_causal(block_size: int) -> AttentionPattern:
    """Every row sees everything up to the end of its own block."""
    return BlockCausal(block_size=block_size)


def dmax_request(*, request_id: int, prompt: IntArray, params: SamplingParams, context: ReqContext) -> BlockRequest:
    """A `ReqFactory`: the block-buffer request under `DMaxRule`."""
    options, mask = context.options, context.mask_token_id
    assert isinstance(options, DMaxOptions), "the strategy's config_cls is DMaxOptions"
    assert mask is not None, "the strategy requires the mask_token capability"
    joint = JointMerges(
        accept=params.resolve_thresholds(context.thresholds).accept_threshold,
        merging=MergeRule.of(options, mask_token_id=mask, vocab_size=context.vocab_size),
    )
    return BlockRequest(
        request_id=request_id, prompt=prompt, params=params, context=context, rule=DMaxRule(joint=joint)
    )


@attrs.frozen(kw_only=True)
class JointMerges:
    """What requests with the same threshold do together: a `JointRule`.

    Attributes:
        accept: a mask is filled when its confidence is at least this.
        merging: what becomes of decided tokens' embeddings.
    """

    accept: float
    merging: MergeRule
    terms: Terms = attrs.field(init=False, eq=False, repr=False)

    @terms.default
    def _terms(self) -> Terms:
        return Terms(
            accept_threshold=inf,
            force_one=False,
            clean_confidence=True,
            measure="prob",
            alternatives=self.merging.alternatives,
        )

    @property
    def asks_of_tokens(self) -> bool:
        """It does not."""
        return False

    def discouraged(self, grid: BlockGrid) -> IntArray | None:
        """None."""
        return None

    def watched(self, grid: BlockGrid) -> IntArray | None:
        """None."""
        return None

    def judge(self, rules: Sequence[DMaxRule], grid: BlockGrid, answers: GridAnswers) -> GridVerdict:
        """Judge all blocks, and remember what is to be fed of them."""
        options = self.merging.options
        (full_steps, _), own = numbers_of([rule.numbers for rule in rules], grid)
        full_steps = full_steps + grid.decided.all(axis=1)
        verdict = judge(
            tokens=grid.tokens,
            decided=grid.decided,
            proposed=answers.proposed,
            confidence=answers.confidence,
            accept=self.accept,
            confident=options.confident_commit_threshold,
            exact=options.exact,
            editable=grid.editable,
        )
        write_numbers(own, np.stack((full_steps, verdict.stability)))
        self._remember(rules, grid, answers, verdict.confidence, verdict.write)
        still_open = ~verdict.settled & (full_steps <= options.max_post_edit_steps)
        return GridVerdict(write=verdict.write, changed=verdict.changed, open=still_open)

    def blends(self, rules: Sequence[DMaxRule], outlines: Sequence[Outline]) -> BlendColumns | None:
        """The descriptors of the positions, those of stored blocks included."""
        return blended([rule.merges for rule in rules], [(outline.start, outline.end) for outline in outlines])

    def _remember(
        self, rules: Sequence[DMaxRule], grid: BlockGrid, answers: GridAnswers, sure: FloatArray, decided: BoolArray
    ) -> None:
        """Take over what is to be fed of all positions from now on."""
        if len(grid.blocks) == 0:
            return
        merged = self.merging.describe(
            grid.flat(np.where(decided, answers.proposed, grid.tokens)),
            grid.flat(sure),
            grid.flat(decided),
            answers.alternatives,
        )
        if merged is None:
            return
        size = grid.tokens.shape[1]
        asked = [size] * len(grid.blocks) if grid.editable is None else grid.editable.sum(axis=1).tolist()
        ends, blocks = [*accumulate(asked, initial=0)], grid.blocks.tolist()
        for rule, (first, last) in zip(rules, pairwise(accumulate(grid.counts, initial=0)), strict=True):
            if first < last:
                # What a block lacks of its size is prompt, and stands before all else.
                position = (blocks[first] + 1) * size - asked[first]
                rows = slice(ends[first], ends[last])
                rule.merges.put(position, merged.merged[rows], merged.ids[rows], merged.weights[rows])


class DMaxRule:
    """Masks are filled from the left, decided tokens refreshed in every step, and both are fed as blends.

    Attributes:
        joint: what it does together with others.
        merges: what is fed.
        numbers: of each running block the forwards in which it had no mask, and the stability of its latest step.
    """

    def __init__(self, *, joint: JointMerges) -> None:
        self.joint = joint
        self.merges = Merges(joint.merging)
        self.numbers = PerBlock(2)

    @property
    def revises(self) -> bool:
        """Decided tokens are asked again."""
        return True

    @property
    def tokens_suffice(self) -> bool:
        """Blended positions' K/V depend on more than their tokens."""
        return not self.joint.merging.options.merges

    def groups(self, table: BlockTable, blocks: range, origin: int) -> list[SampleGroup]:
        """All positions that are not prompt."""
        probable = self.joint.merging.alternatives
        return [revision(table, block, origin, measure="prob", alternatives=probable) for block in blocks]

    def apply(self, table: BlockTable, groups: Sequence[SampleGroup], decision: Decision) -> Outcome:
        """Judge block by block, and remember what is to be fed of it."""
        return revise_alone(self, self.joint, table, groups, decision)

    def stability(self, table: BlockTable, block: int) -> float:
        """As of the block's latest step; 0 before the first."""
        return float(self.numbers.of(block, block + 1)[1, 0])

    def blends(self, start: int, end: int) -> Blends | None:
        """The descriptors of the positions, those of stored blocks included."""
        return self.merges.between(start, end)
