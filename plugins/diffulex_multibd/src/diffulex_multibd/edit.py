"""Edit sampling (LLaDA2.1): masks are filled and decided tokens replaced until the model agrees with its block."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from diffulex_core.blocks import BlockRequest, BlockTable, Outcome, proposals, revision
from diffulex_core.plugin import Blends, Decision, DecodingThresholds, IntArray, ReqContext, SampleGroup, SamplingParams
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


class EditRule:
    """Every position of a running block that is not prompt is asked in every step, decided or not.

    A block is settled in a step in which the model agrees with all of its tokens, or when a limit is hit.
    """

    def __init__(
        self, *, prompt_len: int, block_size: int, thresholds: DecodingThresholds, options: EditOptions
    ) -> None:
        self._limits = Limits(
            accept=thresholds.accept_threshold,
            edit=thresholds.edit_threshold,
            remask=thresholds.remask_threshold if options.enable_remask else None,
            block_size=block_size,
            max_post_edit_steps=options.max_post_edit_steps,
        )
        self._penalty = options.penalty_lambda
        self._steps: Counter[int] = Counter()
        """Forwards in which each running block was sampled."""
        if prompt_len % block_size:
            # The block that the prompt ends in runs before the first forward, which therefore counts as a second one.
            self._steps[prompt_len // block_size] = 1
        self._post_edit_steps: Counter[int] = Counter()
        self._stability: dict[int, float] = {}
        self._reopened: set[int] = set()
        """Positions that returned to mask once."""

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
        """Judge block by block; tokens are as they were before the step until a block's turn, and blocks are apart."""
        written, still_open = [decision.positions[:0]], set[int]()
        for group, rows in zip(groups, proposals(groups, decision), strict=True):
            block, positions = group.block, group.positions
            decided = table.decided[positions]
            self._post_edit_steps[block] += bool(decided.all())
            verdict = judge(
                Proposal(
                    tokens=table.tokens[positions],
                    decided=decided,
                    proposed=decision.tokens[rows],
                    confidence=decision.confidence[rows],
                ),
                self._limits,
                earlier_steps=self._steps[block],
                post_edit_steps=self._post_edit_steps[block],
                believed=None if decision.watched is None else decision.watched[rows],
                may_reopen=np.array([position not in self._reopened for position in positions.tolist()]),
            )
            self._steps[block] += 1
            self._stability[block] = verdict.stability
            table.write(positions[verdict.write], decision.tokens[rows][verdict.write])
            written.append(positions[verdict.write])
            table.reopen(positions[verdict.reopen])
            self._reopened.update(positions[verdict.reopen].tolist())
            if not verdict.settled:
                still_open.add(block)
        return Outcome(written=np.concatenate(written), open=frozenset(still_open))

    def stability(self, table: BlockTable, block: int) -> float:
        """As of the block's latest step; 0 before the first."""
        return self._stability.get(block, 0.0)

    def blends(self, start: int, end: int) -> Blends | None:
        """None."""
        return None

    def _group(self, table: BlockTable, block: int, origin: int) -> SampleGroup:
        positions = table.editable_positions(block)
        return revision(
            table,
            block,
            origin,
            discouraged=self._tokens_before(table, positions) if self._penalty else None,
            penalty=self._penalty,
            watched=table.tokens[positions] if self._limits.remask is not None else None,
        )

    def _tokens_before(self, table: BlockTable, positions: IntArray) -> IntArray:
        """[n] the token before each position in the same block, -1 where there is none."""
        before = positions - 1
        known = (positions % table.block_size > 0) & table.decided[before]
        return np.where(known, table.tokens[before], -1)
