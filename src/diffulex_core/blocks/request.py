"""The block-buffer request: which blocks run, what they feed, and how a step moves them on."""

from __future__ import annotations

from typing import Final

import numpy as np

from diffulex_core.blocks.filling import Filling
from diffulex_core.blocks.limits import StopRules
from diffulex_core.blocks.revising import Revising
from diffulex_core.blocks.rule import BlockRule, Fill, RuleOfKind
from diffulex_core.blocks.state import BlockState, BlockTable, Revision
from diffulex_core.pattern import IntArray, Phase
from diffulex_core.req_context import ReqContext
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.types import NO_ROW, Canvas, CompletionReason, Decision, Outline, Span


class BlockRequest:
    """A request decoded in a buffer of consecutive blocks, by a rule that says what a step decides in them.

    In a step every row of every running block is fed: ACTIVE blocks are sampled, TO_CACHE blocks are stored and still
    occupy their slot. At most one block starts in a step. At buffer size 1 the next block starts in the forward that
    stores its predecessor, which the block-causal mask makes exact.

    With shifted logits a position is decided by the row before it. Before the buffer's first position that is the last
    row that was stored, which the runner keeps; where it does not have it (the pages before the buffer came from the
    cache), that row is fed once more and stores nothing.
    """

    def __init__(
        self,
        *,
        request_id: int,
        prompt: IntArray,
        params: SamplingParams,
        context: ReqContext,
        rule: BlockRule | None = None,
    ) -> None:
        """`rule` is None for mask filling (multi_bd, d2f)."""
        assert context.mask_token_id is not None, "the strategy requires the mask_token capability"
        block_size = context.pattern.block_size
        self.request_id: Final = request_id
        self.params: Final = params
        self._context = context
        self._block_size = block_size
        self._thresholds = params.resolve_thresholds(context.thresholds)
        fill = Fill(thresholds=self._thresholds, force_rule=context.force_rule)
        self._rule: BlockRule = rule or fill
        self._shifted = context.shifted
        self.kind: Final = self._kind(fill, rule)
        """Requests that fill masks by the same rule go on together, and those whose rules are of one kind."""
        self.prompt_len: Final = len(prompt)
        self._stop = StopRules(
            params,
            prompt_len=len(prompt),
            max_model_len=context.max_model_len,
            eos_token_ids=context.eos_token_ids,
            auto_nfe=context.auto_nfe,
        )
        self._table = BlockTable(
            prompt,
            block_size=block_size,
            capacity=-(-self._stop.limit // block_size) * block_size,
            fill_token=context.mask_token_id,
        )
        self._two_phase = context.pattern.two_phase
        self._nfe = 0
        self._draws = 0
        self._carried: int | None = None
        """Position whose hidden row the runner keeps."""
        self._completion: CompletionReason | None = None

    @property
    def nfe(self) -> int:
        return self._nfe

    @property
    def draws(self) -> int:
        return self._draws

    @property
    def completion(self) -> CompletionReason | None:
        return self._completion

    @property
    def blocks(self) -> BlockTable:
        """The blocks, for traces and tests; read only."""
        return self._table

    @property
    def rule(self) -> BlockRule:
        """What a step decides in its blocks."""
        return self._rule

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end the answer."""
        return self._stop.ids

    @property
    def known_tokens(self) -> IntArray:
        end = 0 if self._two_phase else self._table.start
        return self._table.tokens[: end if self._rule.tokens_suffice else min(end, self._whole_prompt())]

    @property
    def stored_tokens(self) -> IntArray:
        return self._table.tokens[: self._table.end]

    @property
    def output_tokens(self) -> IntArray:
        sure = self._final_end() if self._completion is None else self._table.frontier
        end = max(self.prompt_len, self._stop.output_end(sure))
        return self._table.tokens[self.prompt_len : end].copy()

    @property
    def canvas(self) -> Canvas:
        table, start = self._table, self.prompt_len
        return Canvas(
            start=start,
            tokens=table.tokens[start : table.end].copy(),
            decided=table.decided[start : table.end].copy(),
            committed=max(0, table.start - start),
            block_size=table.block_size,
            running_blocks=tuple((table.head + index, state.value) for index, state in enumerate(table.states)),
        )

    def most_slots(self) -> int:
        return len(self._table.tokens)

    def most_rows(self) -> int:
        block_size = self._context.pattern.block_size
        running = min(max(2, self._context.buffer_size), len(self._table.masks) - self.prompt_len // block_size)
        first = self.plan(0, None)
        assert first is not None
        atomic = len(first.tokens) if self._two_phase else 0
        refed = self._shifted and not self._two_phase
        return max(atomic, running * block_size + refed)

    def plan(self, stored: int, budget: int | None) -> Span | None:
        if self._two_phase and stored < self._whole_prompt():
            return self._replay_prompt(budget) if self._draws else self._prefill(budget)
        if self._two_phase and not self._draws:
            return self._prefill(budget)
        span = self._advance(stored, Phase.DECODE)
        if budget is None or len(span.tokens) <= budget:
            return span
        return self._chunk(stored, budget)

    def outline(self, stored: int) -> Outline | None:
        if stored < self._table.start or (self._two_phase and not self._draws):
            return None
        return self._outline(stored)

    def chunkable(self, stored: int) -> bool:
        if stored >= self._table.start:
            return False
        return not self._two_phase or (stored >= self._whole_prompt() and self._draws > 0)

    def apply(self, span: Span, decision: Decision) -> None:
        self._check_answers(span, decision)
        keep = NO_ROW if span.keep is None else span.keep
        if span.advances:
            if span.end > self._table.end:
                self._table.activate()
            outcome = self._rule.apply(self._table, span.groups, decision)
            decision.accepted[:] = False
            decision.accepted[decision.positions.searchsorted(outcome.written)] = True
            self._notice_stops(outcome.written)
            self._draws += 1
            self._table.settle(outcome.open)
        self._went_on(keep, self._final_end())

    def filled(self, positions: IntArray, tokens: IntArray, end: int, keep: int, advances: bool) -> None:
        """As `apply` under the rule of mask filling.

        Args:
            positions, tokens: what was accepted, at different positions of running blocks.
            end, keep, advances: of the span that was fed, as in `Spans`.
        """
        table = self._table
        if advances:
            if end > table.end:
                table.activate()
            if len(positions):
                table.fill(positions, tokens)
                self._stop.notice(positions, tokens)
            self._draws += 1
            table.settle()
        self._went_on(keep, table.frontier)

    def revised(self, revision: Revision, end: int, keep: int, advances: bool) -> None:
        """As `apply` under a rule that revises.

        Args:
            revision: what became of the ACTIVE blocks.
            end, keep, advances: as for `filled`.
        """
        table = self._table
        if advances:
            if end > table.end:
                table.activate()
            table.revise(revision)
            self._stop.first_stop = revision.first_stop
            self._draws += 1
            table.settle(revision.open)
        self._went_on(keep, self._final_end())

    def _went_on(self, keep: int, final_end: int) -> None:
        """Count a forward, after which the runner keeps the row of a position, and see whether the request is done."""
        if keep != NO_ROW:
            self._carried = keep
        self._nfe += 1
        self._completion = self._stop.reason(self._table.tokens, final_end, self._nfe, rereads=self._nfe - self._draws)

    def preempted(self) -> None:
        """Nothing to do: a step needs no K/V that is not final."""

    def finish(self, reason: CompletionReason) -> None:
        self._completion = reason

    def _kind(self, fill: Fill, rule: BlockRule | None) -> Filling | Revising | None:
        """What this request and others of its kind do together; None = it goes by itself."""
        if type(self) is not BlockRequest:  # what a derived class does may differ
            return None
        if rule is None:
            return Filling(fill=fill, block_size=self._block_size, shifted=self._shifted)
        if isinstance(rule, RuleOfKind):
            return Revising(rule=rule.joint, block_size=self._block_size, shifted=self._shifted)
        return None

    def _check_answers(self, span: Span, decision: Decision) -> None:
        """Raise ValueError unless the decision is about the positions that the span asked for."""
        positions, asked = decision.positions, span.groups.positions
        if len(positions) != len(asked) or np.count_nonzero(positions != asked):
            raise ValueError(
                f"request {self.request_id}: the decision does not answer the span's groups, its positions are others"
            )

    def _notice_stops(self, written: IntArray) -> None:
        """Look for stop tokens; where tokens may change, anew in everything that is not stored."""
        table, positions = self._table, written
        if self._rule.revises:
            first = max(self.prompt_len, table.start)
            positions = np.flatnonzero(table.decided[first : table.end]) + first
            self._stop.first_stop = None
        self._stop.notice(positions, table.tokens[positions])

    def _final_end(self) -> int:
        """Everything before this position is final."""
        table = self._table
        if not self._rule.revises:
            return table.frontier
        return max(self.prompt_len, table.start + table.states.count(BlockState.TO_CACHE) * table.block_size)

    def _whole_prompt(self) -> int:
        """End of the prompt's last full block."""
        return self.prompt_len // self._table.block_size * self._table.block_size

    def _starts_block(self) -> bool:
        """Whether the step at hand starts one more block."""
        table, most = self._table, self._context.buffer_size
        running = len(table.states)
        if running >= most > 1 or table.end >= len(table.tokens) or self._stop.first_stop is not None:
            return False
        if not running:
            return True
        if running >= most:
            return table.states == [BlockState.TO_CACHE]
        last = table.head + running - 1
        return (
            table.progress(last) >= self._thresholds.add_block_threshold
            and self._rule.stability(table, last) >= self._thresholds.token_stability_threshold
        )

    def _outline(self, start: int) -> Outline:
        """The numbers of everything from `start` through the running blocks: one step of the block machine."""
        table, size = self._table, self._block_size
        states, head = table.states, table.head
        last = head + len(states) + self._starts_block()
        if self._stop.first_stop is not None and not self._rule.revises:
            last = min(last, self._stop.first_stop // size + 1)
        store_until = min(head + states.count(BlockState.TO_CACHE), last) * size
        first = start - 1 if self._shifted and self._lacks_row_before(start) else start
        keep = store_until - 1 if self._shifted and store_until > first else NO_ROW
        return Outline(first, last * size, table.start - first, start, store_until, keep)

    def _advance(self, start: int, phase: Phase) -> Span:
        """Everything from `start` through the running blocks."""
        table, size = self._table, self._block_size
        outline = self._outline(start)
        active = range(outline.store_until // size, outline.end // size)
        # Of the first row of a shifted family, the row before it is CARRIED.
        origin = outline.start + 1 if self._shifted else outline.start
        return Span(
            start=outline.start,
            tokens=table.tokens[outline.start : outline.end].copy(),
            catch_up=outline.catch_up,
            store_from=outline.store_from,
            store_until=outline.store_until,
            keep=None if outline.keep == NO_ROW else outline.keep,
            phase=phase,
            groups=self._rule.groups(table, active, origin),
            advances=True,
            blends=self._rule.blends(outline.start, outline.end),
        )

    def _lacks_row_before(self, position: int) -> bool:
        """Whether `position` is decided next, by the row before it, and that row is neither fed nor kept."""
        return not self._table.decided[position] and self._carried != position - 1

    def _row_to_keep(self, start: int, store_until: int) -> int | None:
        """The last row that is final after a span from `start`, if the span feeds it."""
        return store_until - 1 if self._shifted and store_until > start else None

    def _prefill(self, budget: int | None) -> Span | None:
        """First forward of a two-phase pattern: the whole prompt and the blocks that run behind it."""
        span = self._advance(0, Phase.PREFILL)
        return span if budget is None or len(span.tokens) <= budget else None

    def _replay_prompt(self, budget: int | None) -> Span | None:
        """First forward of a resumed two-phase request: the prompt as it was seen in prefill."""
        if budget is not None and self.prompt_len > budget:
            return None
        return self._known_span(0, self.prompt_len, self._whole_prompt(), Phase.PREFILL)

    def _chunk(self, stored: int, budget: int) -> Span | None:
        """A piece of the known tokens, cut where nothing before the cut depends on what comes after."""
        pattern = self._context.pattern
        for end in range(
            min(stored + budget, self._table.start) // pattern.block_size, stored // pattern.block_size, -1
        ):
            cut = end * pattern.block_size
            if pattern.dependency_end(cut - 1, self.prompt_len) <= cut:
                return self._known_span(stored, cut, cut, Phase.DECODE)
        return None

    def _known_span(self, start: int, end: int, store_until: int, phase: Phase) -> Span:
        return Span(
            start=start,
            tokens=self._table.tokens[start:end].copy(),
            catch_up=end - start,
            store_from=start,
            store_until=store_until,
            keep=self._row_to_keep(start, store_until),
            phase=phase,
            groups=(),
            advances=False,
            blends=self._rule.blends(start, end),
        )
