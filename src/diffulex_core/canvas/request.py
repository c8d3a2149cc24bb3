"""The canvas request: a prompt and masks of fixed number, fed whole in every step until all are decided."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import attrs
import numpy as np

from diffulex_core.blocks.limits import StopRules
from diffulex_core.canvas.options import CanvasOptions
from diffulex_core.canvas.rule import CanvasRule, Region
from diffulex_core.errors import PromptTooLong
from diffulex_core.pattern import IntArray, Phase
from diffulex_core.req_context import ReqContext
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.sparse.config import SparseConfig
from diffulex_core.sparse.state import Frame, SparseState
from diffulex_core.types import BoolArray, Canvas, CompletionReason, Decision, Guidance, SampleGroups, Span, Terms

_SEED_BITS = 2**63 - 1

TokensHook = Callable[[int | None, IntArray], IntArray]
"""Called once before the first step (with None) and after each step (with its number): the whole sequence, [prompt +
canvas] ids, and what it returns takes its place. Canvas positions that hold the mask token then are undecided."""


class CanvasRequest:
    """A request decoded on a canvas of fixed length under full attention.

    Every step feeds prompt and canvas, because any new token changes the K/V of all others: nothing is ever stored in
    final form, no page is shared, and losing the pages costs nothing. What is sampled and what is decided is the
    rule's. A guided request feeds a second sequence beside it, in which the prompt is masked.

    With a sparse cache most steps feed only what the rule works on, and read K/V that an earlier step kept of the rest.

    It ends when everything before an end token is decided, since nothing behind it can change the answer, or when the
    canvas is full.
    """

    def __init__(
        self,
        *,
        request_id: int,
        prompt: IntArray,
        params: SamplingParams,
        context: ReqContext,
        options: CanvasOptions,
        length: int,
        rule: CanvasRule,
        tokens_hook: TokensHook | None = None,
    ) -> None:
        """
        Args:
            options: the settings, the request's own first.
            length: masks behind the prompt, see `canvas_length`.
            rule: what decides them.
            tokens_hook: may rewrite the sequence between steps.
        """
        assert context.mask_token_id is not None, "the strategy requires the mask_token capability"
        self.request_id: Final = request_id
        self.params: Final = _suppressing(params, context.eos_token_ids) if options.suppress_eos else params
        self.prompt_len: Final = len(prompt)
        self._mask = context.mask_token_id
        self._vocab_size = context.vocab_size
        self._shifted = context.shifted
        self._scale = options.cfg_scale
        self._rule = rule
        self._terms = Terms(
            accept_threshold=math.inf, force_one=False, clean_confidence=rule.clean, measure=rule.measure
        )
        sparse = sparse_of(params, context)
        self._sparse = None if sparse is None else SparseState(config=sparse)
        self._tokens: IntArray = np.concatenate((prompt, np.full(length, self._mask, dtype=np.int64)))
        self._decided: BoolArray = np.arange(len(self._tokens)) < len(prompt)
        self._stop = StopRules(
            attrs.evolve(params, max_tokens=params.max_tokens if options.gen_length is None else length),
            prompt_len=len(prompt),
            max_model_len=context.max_model_len,
            eos_token_ids=context.eos_token_ids,
            auto_nfe=context.auto_nfe,
        )
        self._frontier = len(prompt)
        self._nfe = 0
        self._completion: CompletionReason | None = None
        self._looked: tuple[IntArray, Region | None] | None = None
        """What `_open` gives; None = a step has changed it."""
        self._hook = tokens_hook
        self._rewrite(None)

    @property
    def guided(self) -> bool:
        return self._scale > 0

    @property
    def nfe(self) -> int:
        return self._nfe

    @property
    def steps_left(self) -> int | None:
        left = self._rule.left(self._open()[0])
        return None if left is None else int(min(left, self._stop.nfe_cap - self._nfe))

    @property
    def draws(self) -> int:
        return self._nfe

    @property
    def completion(self) -> CompletionReason | None:
        return self._completion

    @property
    def known_tokens(self) -> IntArray:
        return self._tokens[:0]

    @property
    def stored_tokens(self) -> IntArray:
        return self._tokens

    @property
    def output_tokens(self) -> IntArray:
        end = max(self.prompt_len, self._stop.output_end(self._frontier))
        return self._tokens[self.prompt_len : end].copy()

    @property
    def canvas(self) -> Canvas:
        start = self.prompt_len
        return Canvas(
            start=start,
            tokens=self._tokens[start:].copy(),
            decided=self._decided[start:].copy(),
            committed=0,
            block_size=len(self._tokens),
            running_blocks=((0, "active"),),
        )

    def most_slots(self) -> int:
        return len(self._tokens)

    def most_rows(self) -> int:
        return len(self._tokens) * (2 if self.guided else 1)

    def plan(self, stored: int, budget: int | None) -> Span | None:
        masks, region = self._open()
        frame = self._frame(region)
        if isinstance(frame, Span):
            return frame if budget is None or frame.rows <= budget else None
        rows = (frame.end - frame.start) * (2 if self.guided else 1)
        if budget is not None and rows > budget:
            return None
        return Span(
            start=frame.start,
            tokens=self._tokens[frame.start : frame.end].copy(),
            catch_up=0,
            store_from=frame.store_from,
            store_until=0,
            phase=Phase.DECODE,
            groups=self._groups(masks, frame.start),
            advances=True,
            guidance=self._guidance(frame.start, frame.end),
            refresh=frame.refresh,
            packed=frame.packed,
            held=frame.held,
        )

    def chunkable(self, stored: int) -> bool:
        return False

    def apply(self, span: Span, decision: Decision) -> None:
        asked, given = span.groups.positions, decision.positions
        if len(asked) != len(given) or np.count_nonzero(asked != given):
            raise ValueError(f"request {self.request_id}: decided positions are not the ones that were asked")
        masks, region = self._open()
        if self._sparse is not None and region is not None:
            self._sparse.took(span, region)
        if not span.advances:
            return
        if len(masks):
            decision.accepted[:] = self._rule.choose(
                masks, asked - self.prompt_len, decision.tokens, decision.confidence
            )
        positions, tokens = asked[decision.accepted], decision.tokens[decision.accepted]
        self._tokens[positions] = tokens
        self._decided[positions] = True
        self._stop.notice(positions, tokens)
        while self._frontier < len(self._tokens) and self._decided[self._frontier]:
            self._frontier += 1
        self._looked = None
        self._rewrite(self._nfe)
        self._nfe += 1
        self._completion = self._stop.reason(self._tokens, self._frontier, self._nfe)

    def preempted(self) -> None:
        if self._sparse is not None:
            self._sparse.preempted()

    def finish(self, reason: CompletionReason) -> None:
        self._completion = reason

    def _open(self) -> tuple[IntArray, Region | None]:
        """[n] undecided positions of the canvas, counted from its first, and where a sparse cache works on them."""
        if self._looked is None:
            masks = np.flatnonzero(~self._decided[self.prompt_len :])
            self._looked = masks, None if self._sparse is None or len(masks) == 0 else self._region(masks)
        return self._looked

    def _frame(self, region: Region | None) -> Frame | Span:
        """What the next step feeds; or a step that only restores what an earlier one kept."""
        if self._sparse is None or region is None:
            return Frame(start=0, end=len(self._tokens))
        forced = self._sparse.config.force_first and bool(self._decided[region.start])
        return self._sparse.frame(self._tokens, region, row_before=self._shifted and not forced)

    def _groups(self, masks: IntArray, start: int) -> SampleGroups:
        """What the next step, which feeds everything from `start` on, is asked for."""
        asked = (self._rule.ask(masks) if len(masks) else masks) + self.prompt_len
        if len(asked) == 0:
            return SampleGroups.of(())
        rows = (np.maximum(asked - 1, 0) if self._shifted else asked) - start
        return SampleGroups(blocks=(0,), sizes=(len(asked),), positions=asked, rows=rows, terms=(self._terms,))

    def _region(self, masks: IntArray) -> Region:
        """The rule's region, counted from the sequence's first position."""
        region = self._rule.region(masks)
        return Region(start=region.start + self.prompt_len, end=region.end + self.prompt_len, last=region.last)

    def _rewrite(self, step: int | None) -> None:
        """Let the hook replace the sequence, and look at all of it anew."""
        if self._hook is None:
            return
        tokens = np.array(self._hook(step, self._tokens.copy()), dtype=np.int64)
        if tokens.shape != self._tokens.shape:
            raise ValueError(f"the tokens hook made {tokens.shape} of a sequence of {self._tokens.shape}")
        if self._vocab_size is not None:
            outside = tokens[(tokens < 0) | (tokens >= self._vocab_size)]
            if len(outside):
                raise ValueError(f"the tokens hook wrote id {outside[0]}, outside the vocabulary of {self._vocab_size}")
        self._tokens = tokens
        self._looked = None
        self._decided[self.prompt_len :] = tokens[self.prompt_len :] != self._mask
        at = np.flatnonzero(self._decided[self.prompt_len :]) + self.prompt_len
        self._frontier = int(np.argmin(self._decided)) if not self._decided.all() else len(tokens)
        self._stop.first_stop = None
        self._stop.notice(at, tokens[at])

    def _guidance(self, start: int, end: int) -> Guidance | None:
        """The second reading of positions `[start, end)`."""
        if not self.guided:
            return None
        tokens = self._tokens[start:end].copy()
        tokens[: max(0, self.prompt_len - start)] = self._mask
        return Guidance(tokens=tokens, scale=self._scale)


def canvas_length(options: CanvasOptions, params: SamplingParams, prompt_len: int, context: ReqContext) -> int:
    """Masks behind the prompt.

    Raises:
        PromptTooLong: `gen_length` was asked for and does not fit the context; the message says what would.
    """
    room = context.max_model_len - prompt_len
    if options.gen_length is None:
        return min(params.max_tokens, room)
    if options.gen_length > room:
        raise PromptTooLong(
            f"The prompt has {prompt_len} tokens and gen_length is {options.gen_length}, but max_model_len is "
            f"{context.max_model_len}. Set gen_length to {room} or less, or raise max_model_len."
        )
    return options.gen_length


def sparse_of(params: SamplingParams, context: ReqContext) -> SparseConfig | None:
    """The sparse cache that the request wants, or the engine for it; None = none."""
    config = context.sparse if params.sparse is None else params.sparse
    return config if config.enabled else None


def seed_of(params: SamplingParams) -> int:
    """The request's seed as the sampler reads it."""
    return (params.seed or 0) & _SEED_BITS


def _suppressing(params: SamplingParams, ids: frozenset[int]) -> SamplingParams:
    return attrs.evolve(params, logit_bias={**params.logit_bias, **dict.fromkeys(ids, -math.inf)})
