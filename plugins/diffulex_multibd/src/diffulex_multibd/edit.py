"""Edit sampling (LLaDA2.1): masks are filled and decided tokens replaced until the model agrees with its block."""

from __future__ import annotations

from collections.abc import Sequence
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
    Blends,
    BoolArray,
    Decision,
    DecodingThresholds,
    IntArray,
    Outline,
    ReqContext,
    SampleGroup,
    SamplingParams,
    Terms,
)
from diffulex_multibd.joint_threshold import Limits, Proposal, judge
from diffulex_multibd.options import EditOptions


def edit_request(*, request_id: int, prompt: IntArray, params: SamplingParams, context: ReqContext) -> BlockRequest:
    """A `ReqFactory`: the block-buffer request under `EditRule`."""
    options = context.options
    assert isinstance(options, EditOptions), "the strategy's config_cls is EditOptions"
    rule = EditRule(
        prompt_len=len(prompt),
        block_size=context.pattern.block_size,
        thresholds=params.resolve_thresholds(context.thresholds),
        options=options,
    )
    return BlockRequest(request_id=request_id, prompt=prompt, params=params, context=context, rule=rule)


@attrs.frozen(kw_only=True)
class JointEdits:
    """What requests with the same limits do together: a `JointRule`.

    Attributes:
        limits: of each.
        penalty: what repeating the token before costs a position.
    """

    limits: Limits
    penalty: float
    terms: Terms = attrs.field(init=False, eq=False, repr=False)

    @terms.default
    def _terms(self) -> Terms:
        return Terms(accept_threshold=inf, force_one=False, clean_confidence=True, penalty=self.penalty)

    @property
    def asks_of_tokens(self) -> bool:
        """With a penalty, and to return tokens to mask."""
        return bool(self.penalty) or self.limits.remask is not None

    def discouraged(self, grid: BlockGrid) -> IntArray | None:
        """The token before each position in the same block, -1 where there is none."""
        if not self.penalty:
            return None
        before = np.full_like(grid.tokens, -1)
        before[:, 1:] = np.where(grid.decided[:, :-1], grid.tokens[:, :-1], -1)
        return before

    def watched(self, grid: BlockGrid) -> IntArray | None:
        """The token that stands there."""
        return None if self.limits.remask is None else grid.tokens

    def judge(self, rules: Sequence[EditRule], grid: BlockGrid, answers: GridAnswers) -> GridVerdict:
        """Tokens are as they were before the step until a block's turn, and blocks are apart."""
        (steps, full_steps, _), own = numbers_of([rule.numbers for rule in rules], grid)
        full_steps = full_steps + grid.decided.all(axis=1)
        verdict = judge(
            Proposal(
                tokens=grid.tokens,
                decided=grid.decided,
                proposed=answers.proposed,
                confidence=answers.confidence,
                editable=grid.editable,
            ),
            self.limits,
            earlier_steps=steps,
            post_edit_steps=full_steps,
            believed=answers.watched,
        )
        write_numbers(own, np.stack((steps + 1, full_steps, verdict.stability)))
        reopen = verdict.reopen
        if reopen is not None and reopen.any():
            reopen = _once(rules, grid, reopen)
        return GridVerdict(write=verdict.write, changed=verdict.write, open=~verdict.settled, reopen=reopen)

    def blends(self, rules: Sequence[EditRule], outlines: Sequence[Outline]) -> BlendColumns | None:
        """None."""
        return None


class EditRule:
    """Every position of a running block that is not prompt is asked in every step, decided or not.

    A block is settled in a step in which the model agrees with all of its tokens, or when a limit is hit.

    Attributes:
        joint: what it does together with others.
        numbers: of each running block the forwards in which it was sampled, those of them in which it had no mask, and
            the stability of its latest step.
        reopened: positions that returned to mask once.
    """

    def __init__(
        self, *, prompt_len: int, block_size: int, thresholds: DecodingThresholds, options: EditOptions
    ) -> None:
        limits = Limits(
            accept=thresholds.accept_threshold,
            edit=thresholds.edit_threshold,
            remask=thresholds.remask_threshold if options.enable_remask else None,
            block_size=block_size,
            max_post_edit_steps=options.max_post_edit_steps,
        )
        self.joint = JointEdits(limits=limits, penalty=options.penalty_lambda)
        self.numbers = PerBlock(3)
        self.reopened: set[int] = set()
        if prompt_len % block_size:
            # The block that the prompt ends in runs before the first forward, which therefore counts as a second one.
            block = prompt_len // block_size
            self.numbers.of(block, block + 1)[0] = 1

    @property
    def revises(self) -> bool:
        """Decided tokens are asked again."""
        return True

    @property
    def tokens_suffice(self) -> bool:
        """Token ids are all that is fed."""
        return True

    def groups(self, table: BlockTable, blocks: range, origin: int) -> list[SampleGroup]:
        """All positions that are not prompt."""
        return [self._group(table, block, origin) for block in blocks]

    def apply(self, table: BlockTable, groups: Sequence[SampleGroup], decision: Decision) -> Outcome:
        """Judge block by block."""
        return revise_alone(self, self.joint, table, groups, decision)

    def stability(self, table: BlockTable, block: int) -> float:
        """As of the block's latest step; 0 before the first."""
        return float(self.numbers.of(block, block + 1)[2, 0])

    def blends(self, start: int, end: int) -> Blends | None:
        """None."""
        return None

    def _group(self, table: BlockTable, block: int, origin: int) -> SampleGroup:
        positions, penalty = table.editable_positions(block), self.joint.penalty
        return revision(
            table,
            block,
            origin,
            discouraged=self._tokens_before(table, positions) if penalty else None,
            penalty=penalty,
            watched=table.tokens[positions] if self.joint.limits.remask is not None else None,
        )

    def _tokens_before(self, table: BlockTable, positions: IntArray) -> IntArray:
        """[n] the token before each position in the same block, -1 where there is none."""
        before = positions - 1
        known = (positions % table.block_size > 0) & table.decided[before]
        return np.where(known, table.tokens[before], -1)


def _once(rules: Sequence[EditRule], grid: BlockGrid, reopen: BoolArray) -> BoolArray:
    """Of the positions that may return to mask those that never did; the rules take note of them."""
    size, owners = grid.tokens.shape[1], np.repeat(np.arange(len(rules)), grid.counts).tolist()
    reopen, blocks = reopen.copy(), grid.blocks.tolist()
    for row, column in zip(*(each.tolist() for each in reopen.nonzero()), strict=True):
        seen, position = rules[owners[row]].reopened, blocks[row] * size + column
        if position in seen:
            reopen[row, column] = False
        seen.add(position)
    return reopen
