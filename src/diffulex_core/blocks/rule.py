"""What a step decides in the running blocks: the rule that a block-buffer request is built around."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from math import inf
from typing import Any, Protocol, runtime_checkable

import attrs

from diffulex_core.blocks.grid import JointRule
from diffulex_core.blocks.state import BlockTable
from diffulex_core.pattern import IntArray
from diffulex_core.req_context import ForceRule
from diffulex_core.sampling_params import DecodingThresholds
from diffulex_core.types import Blends, Decision, SampleGroup, SampleGroups, Terms


@attrs.frozen(kw_only=True, eq=False)
class Outcome:
    """What a rule did with a step's proposals.

    Attributes:
        written: [n] positions whose token was set, decided anew or replaced.
        open: complete blocks that may still change, so that they are not stored yet.
    """

    written: IntArray
    open: frozenset[int] = frozenset()


class BlockRule(Protocol):
    """Which positions of a block are asked, and what becomes of the answers. One object for each request."""

    @property
    def revises(self) -> bool:
        """Whether a decided token may still change until its block is to be stored."""
        ...

    @property
    def tokens_suffice(self) -> bool:
        """Whether an answer's K/V follow from its tokens, so that its pages may serve others."""
        ...

    def groups(self, table: BlockTable, blocks: range, origin: int) -> Sequence[SampleGroup]:
        """What is asked of the ACTIVE blocks in the step at hand: a group for each, in order, or none for some.

        Args:
            table: the tokens as they are before the step.
            blocks: their indices; the last may not be in the buffer yet.
            origin: position that the window's first row decides; row `position - origin` decides `position`.
        """
        ...

    def apply(self, table: BlockTable, groups: Sequence[SampleGroup], decision: Decision) -> Outcome:
        """Write what the step decided into the table.

        Args:
            table: the tokens as they were before the step.
            groups: what was asked.
            decision: the answers, in the order of the groups.
        """
        ...

    def stability(self, table: BlockTable, block: int) -> float:
        """Share of a running block's tokens that the latest step left as they were."""
        ...

    def blends(self, start: int, end: int) -> Blends | None:
        """Positions of `[start, end)` that are fed blended embeddings; None = none."""
        ...


@runtime_checkable
class RuleOfKind(BlockRule, Protocol):
    """What a rule that revises offers besides `BlockRule` if its request may be planned and moved on with others."""

    @property
    def joint(self) -> JointRule[Any]:
        """Requests whose rules have equal ones go together; the same throughout the request's life."""
        ...


@attrs.frozen(kw_only=True)
class Fill:
    """Mask filling: a position is decided once, when the sampler accepts it, and never changes again.

    Attributes:
        thresholds: those of the request.
        force_rule: when a block decides its most confident position although none is confident enough.
        forcing, waiting: the terms of a block that does, and of one that does not.
    """

    thresholds: DecodingThresholds
    force_rule: ForceRule
    forcing: Terms = attrs.field(init=False, eq=False, repr=False)
    waiting: Terms = attrs.field(init=False, eq=False, repr=False)

    @forcing.default
    def _forcing(self) -> Terms:
        return Terms(accept_threshold=self.thresholds.accept_threshold, force_one=True)

    @waiting.default
    def _waiting(self) -> Terms:
        return attrs.evolve(self.forcing, force_one=False)

    @property
    def revises(self) -> bool:
        """Decided is decided."""
        return False

    @property
    def tokens_suffice(self) -> bool:
        """Token ids are all that is fed."""
        return True

    def groups(self, table: BlockTable, blocks: range, origin: int) -> SampleGroups:
        """The undecided positions."""
        positions = table.open_positions(blocks)
        asked = [block for block in blocks if table.masks[block]]
        return SampleGroups(
            blocks=asked,
            sizes=[table.masks[block] for block in asked],
            positions=positions,
            rows=positions - origin,
            terms=[self.forcing if self._forces_one(table, block) else self.waiting for block in asked],
        )

    def apply(self, table: BlockTable, groups: Sequence[SampleGroup], decision: Decision) -> Outcome:
        """Decide what the sampler accepted."""
        positions = decision.positions[decision.accepted]
        table.decide(positions, decision.tokens[decision.accepted])
        return Outcome(written=positions)

    def stability(self, table: BlockTable, block: int) -> float:
        """Known only of complete blocks."""
        return 1.0 if table.masks[block] == 0 else 0.0

    def blends(self, start: int, end: int) -> Blends | None:
        """None."""
        return None

    def _forces_one(self, table: BlockTable, block: int) -> bool:
        if self.force_rule == "always" or block == 0:
            return True
        return table.progress(block - 1) >= self.thresholds.semi_complete_threshold


def proposals(groups: Sequence[SampleGroup], decision: Decision) -> list[slice]:
    """The part of a decision's arrays that answers each group."""
    ends = list(accumulate(len(group.positions) for group in groups))
    return [slice(begin, end) for begin, end in pairwise([0, *ends])]


def revision(
    table: BlockTable,
    block: int,
    origin: int,
    *,
    discouraged: IntArray | None = None,
    penalty: float = 0.0,
    watched: IntArray | None = None,
    measure: str | None = None,
    alternatives: int = 0,
) -> SampleGroup:
    """Everything of a block that is not prompt, decided or not, for a rule that judges the answers by itself.

    Args:
        table: the tokens as they are before the step.
        block: its index.
        origin: as for `BlockRule.groups`.
        discouraged, penalty, watched, measure, alternatives: as in `SampleGroup`.
    """
    positions = table.editable_positions(block)
    return SampleGroup(
        block=block,
        positions=positions,
        rows=positions - origin,
        accept_threshold=inf,
        force_one=False,
        clean_confidence=True,
        discouraged=discouraged,
        penalty=penalty,
        watched=watched,
        measure=measure,
        alternatives=alternatives,
    )
