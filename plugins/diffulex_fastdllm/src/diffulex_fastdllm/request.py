"""The request of the strategy fast_dllm_v2: one block at a time, sub-block by sub-block, with a dual cache."""

from __future__ import annotations

import enum
from typing import Final

import numpy as np

from diffulex_core.blocks import BlockState, BlockTable
from diffulex_core.blocks.limits import StopRules
from diffulex_core.plugin import (
    Canvas,
    CompletionReason,
    Decision,
    IntArray,
    Phase,
    ReqContext,
    SampleGroup,
    SamplingParams,
    Span,
)
from diffulex_fastdllm.options import DualCacheOptions


class Mode(enum.Enum):
    """What a step of the machine feeds."""

    SEED = "seed"
    """The rest of a prompt that ends with a block; its last row decides the next block's first position."""
    FULL = "full"
    """The whole block, whose K/V are stored as they are for the moment."""
    REFINE = "refine"
    """The current sub-block beside the neighbours' K/V of the last full pass."""
    COMMIT = "commit"
    """The whole decided block, whose K/V are final now; its last row decides the next block's first position."""


class DualCacheRequest:
    """A request decoded in blocks of several sub-blocks (Fast-dLLM v2).

    The current sub-block is the first with an undecided position; only it is sampled, and every step decides its
    confident positions, at least one. Logits are shifted: a position is decided by the row before it. A block's first
    position is decided greedily by the last row before the block, in the forward that stores that row, and never is a
    mask in the passes over its block. A sub-block whose first position is undecided is decided by a row of its
    neighbour, so it takes a full pass; the passes after that feed the sub-block alone (`fdv2_use_block_cache`).

    The last full pass lives in provisional K/V of the request's pages. A preemption loses them, so the machine goes on
    with a full pass.
    """

    def __init__(self, *, request_id: int, prompt: IntArray, params: SamplingParams, context: ReqContext) -> None:
        assert context.mask_token_id is not None, "the strategy requires the mask_token capability"
        assert context.shifted, "a family with the dual_cache capability has shifted logits"
        assert isinstance(context.options, DualCacheOptions)
        block_size = context.pattern.block_size
        self.request_id: Final = request_id
        self.params: Final = params
        self._context = context
        self._use_block_cache = context.options.fdv2_use_block_cache
        self._accept_threshold = params.resolve_thresholds(context.thresholds).accept_threshold
        self.prompt_len: Final = len(prompt)
        self._sub_size = block_size // context.buffer_size
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
        self._nfe = 0
        self._draws = 0
        self._full_pass_stored = False
        """Whether the pages hold K/V of a full pass over the running block."""
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
    def known_tokens(self) -> IntArray:
        return self._table.tokens[: self._table.start]

    @property
    def stored_tokens(self) -> IntArray:
        return self._table.tokens[: self._table.end]

    @property
    def output_tokens(self) -> IntArray:
        end = max(self.prompt_len, self._stop.output_end(self._table.frontier))
        return self._table.tokens[self.prompt_len : end].copy()

    @property
    def canvas(self) -> Canvas:
        """As of every request; its blocks are the sub-blocks."""
        table, start = self._table, self.prompt_len
        first = table.start // self._sub_size
        states = [state.value for state in table.states for _ in range(self._context.buffer_size)]
        return Canvas(
            start=start,
            tokens=table.tokens[start : table.end].copy(),
            decided=table.decided[start : table.end].copy(),
            committed=max(0, table.start - start),
            block_size=self._sub_size,
            running_blocks=tuple((first + index, state) for index, state in enumerate(states)),
        )

    @property
    def mode(self) -> Mode:
        """What the next step feeds, once the prompt before the block is stored."""
        table = self._table
        if not table.states:
            return Mode.SEED
        if table.states == [BlockState.TO_CACHE]:
            return Mode.COMMIT
        if not self._use_block_cache or not self._full_pass_stored or table.frontier % self._sub_size == 0:
            return Mode.FULL
        return Mode.REFINE

    def most_slots(self) -> int:
        return len(self._table.tokens)

    def most_rows(self) -> int:
        return self._table.block_size

    def plan(self, stored: int, budget: int | None) -> Span | None:
        span = self._step(stored)
        if budget is None or len(span.tokens) <= budget:
            return span
        return self._chunk(stored, budget)

    def chunkable(self, stored: int) -> bool:
        return stored < self._table.start

    def apply(self, span: Span, decision: Decision) -> None:
        asked = span.groups.positions
        if not np.array_equal(decision.positions, asked):
            raise ValueError(
                f"request {self.request_id}: the decision does not answer the span's groups, its positions are others"
            )
        positions, tokens = asked[decision.accepted], decision.tokens[decision.accepted]
        if span.advances:
            if self.mode in (Mode.SEED, Mode.COMMIT):
                self._table.settle()
                self._table.activate()
                self._full_pass_stored = False
            else:
                self._full_pass_stored = True
            self._table.decide(positions, tokens)
            self._stop.notice(positions, tokens)
            self._table.settle()
            self._draws += 1
        self._nfe += 1
        self._completion = self._stop.reason(
            self._table.tokens, self._table.frontier, self._nfe, rereads=self._nfe - self._draws
        )

    def preempted(self) -> None:
        self._full_pass_stored = False

    def finish(self, reason: CompletionReason) -> None:
        self._completion = reason

    def _step(self, stored: int) -> Span:
        """One step of the machine, with everything before the block that is not stored yet."""
        table = self._table
        match self.mode:
            case Mode.SEED:
                # A prompt that is all in the cache feeds its last row once more, and that row stores nothing.
                first = min(stored, table.start - 1)
                return self._span(first, table.start, (self._seed(table.start, first),), store_from=stored)
            case Mode.COMMIT:
                return self._span(stored, table.end, (self._seed(table.end, stored),), store_until=table.end)
            case Mode.FULL:
                return self._span(stored, table.end, (self._current(stored),))
            case Mode.REFINE:
                first = table.frontier // self._sub_size * self._sub_size
                group = self._current(first)
                return self._span(first, first + self._sub_size, (group,), visible_end=table.end)

    def _span(
        self,
        start: int,
        end: int,
        groups: tuple[SampleGroup, ...],
        *,
        store_from: int = 0,
        store_until: int | None = None,
        visible_end: int | None = None,
    ) -> Span:
        return Span(
            start=start,
            tokens=self._table.tokens[start:end].copy(),
            catch_up=max(0, self._table.start - start),
            store_from=store_from,
            store_until=self._table.start if store_until is None else store_until,
            visible_end=visible_end,
            phase=Phase.DECODE,
            groups=groups,
            advances=True,
        )

    def _chunk(self, stored: int, budget: int) -> Span | None:
        """Whole blocks of the known tokens."""
        block_size = self._table.block_size
        end = min(stored + budget, self._table.start) // block_size * block_size
        if end <= stored:
            return None
        return Span(
            start=stored,
            tokens=self._table.tokens[stored:end].copy(),
            catch_up=end - stored,
            store_from=stored,
            store_until=end,
            phase=Phase.DECODE,
            groups=(),
            advances=False,
        )

    def _seed(self, position: int, start: int) -> SampleGroup:
        """A block's first position, by the row before it."""
        return SampleGroup(
            block=position // self._sub_size,
            positions=np.array([position]),
            rows=np.array([position - 1 - start]),
            accept_threshold=-1.0,
            force_one=True,
            greedy=True,
        )

    def _current(self, start: int) -> SampleGroup:
        """The undecided positions of the current sub-block."""
        table, block = self._table, self._table.frontier // self._sub_size
        end = (block + 1) * self._sub_size
        positions = np.flatnonzero(~table.decided[table.frontier : end]) + table.frontier
        return SampleGroup(
            block=block,
            positions=positions,
            rows=positions - 1 - start,
            accept_threshold=self._accept_threshold,
            force_one=True,
        )
