"""Requests that are wrong in one way each; all but that is the block-buffer request."""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar

import attrs
import numpy as np

from diffulex_core.blocks import BlockRequest
from diffulex_core.pattern import IntArray, Phase
from diffulex_core.types import Blends, CompletionReason, Decision, Span

RANDOM = np.random.default_rng(0)


class RewritesPrompt(BlockRequest):
    """The prompt's last token changes once the answer has begun."""

    def apply(self, span: Span, decision: Decision) -> None:
        super().apply(span, decision)
        self.blocks.tokens[self.prompt_len - 1] = 1


class AsksForPrompt(BlockRequest):
    """The last token of the prompt is sampled along."""

    def plan(self, stored: int, budget: int | None) -> Span | None:
        span = super().plan(stored, budget)
        first = self.prompt_len - 1
        if span is None or not span.groups or span.start > first or span.groups[0].positions[0] != self.prompt_len:
            return span
        group = span.groups[0]
        wider = attrs.evolve(
            group, positions=np.append(first, group.positions), rows=np.append(group.rows[0] - 1, group.rows)
        )
        return attrs.evolve(span, groups=(wider, *span.groups[1:]))

    def apply(self, span: Span, decision: Decision) -> None:
        ours = decision.positions >= self.prompt_len
        kept = attrs.evolve(
            decision,
            positions=decision.positions[ours],
            tokens=decision.tokens[ours],
            confidence=decision.confidence[ours],
            accepted=decision.accepted[ours],
        )
        super().apply(span, kept)


class RewritesStored(BlockRequest):
    """The last stored token of the answer changes."""

    def apply(self, span: Span, decision: Decision) -> None:
        super().apply(span, decision)
        if self.blocks.start > self.prompt_len:
            self.blocks.tokens[self.blocks.start - 1] = 2


class TakesBack(BlockRequest):
    """The answer so far is shown a token further than it is decided for good."""

    @property
    def output_tokens(self) -> IntArray:
        told = super().output_tokens
        return told if self.completion is not None else np.append(told, 1)


class DecidesNothing(BlockRequest):
    """What is accepted is not taken."""

    def apply(self, span: Span, decision: Decision) -> None:
        super().apply(span, attrs.evolve(decision, accepted=np.zeros_like(decision.accepted)))


class PlansNothing(BlockRequest):
    """After a block it does not know how to go on."""

    def plan(self, stored: int, budget: int | None) -> Span | None:
        return None if self.blocks.head > self.prompt_len // self.blocks.block_size else super().plan(stored, budget)


class CountsTwice(BlockRequest):
    """A forward counts as two."""

    def apply(self, span: Span, decision: Decision) -> None:
        super().apply(span, decision)
        self._nfe += 1


class ShowsMasks(BlockRequest):
    """The answer of a request that was cut short ends with its last block."""

    @property
    def output_tokens(self) -> IntArray:
        if self.completion not in (CompletionReason.ABORTED, CompletionReason.NFE_LIMIT):
            return super().output_tokens
        return self.blocks.tokens[self.prompt_len : max(self.prompt_len, self.blocks.end)].copy()


class ShowsDrafts(BlockRequest):
    """The answer so far holds whatever stands there."""

    @property
    def output_tokens(self) -> IntArray:
        told = super().output_tokens
        return told if self.completion is not None else self.blocks.tokens[self.prompt_len : self.blocks.end].copy()


class IgnoresEos(BlockRequest):
    """An end of text is a token like others."""

    def __init__(self, **arguments: Any) -> None:
        context = attrs.evolve(arguments.pop("context"), eos_token_ids=frozenset())
        super().__init__(context=context, **arguments)


class TellsTheEnd(BlockRequest):
    """The stop token is part of the answer."""

    @property
    def output_tokens(self) -> IntArray:
        told = super().output_tokens
        if self.completion not in (CompletionReason.STOP_EOS, CompletionReason.STOP_TOKEN):
            return told
        end = self.prompt_len + len(told)
        return self.blocks.tokens[self.prompt_len : end + 1].copy()


class ExceedsLimit(BlockRequest):
    """An answer goes on to the end of its block."""

    @property
    def output_tokens(self) -> IntArray:
        told = super().output_tokens
        if self.completion is not CompletionReason.LENGTH_TOKENS:
            return told
        return self.blocks.tokens[self.prompt_len : self.blocks.frontier].copy()


class IgnoresMaxNfe(BlockRequest):
    """It goes on for as long as it takes."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**{**arguments, "params": attrs.evolve(arguments["params"], max_nfe=None)})


class EndsForNoReason(BlockRequest):
    """It ends with a stop token that never came, once its first block is done."""

    def apply(self, span: Span, decision: Decision) -> None:
        super().apply(span, decision)
        if self.completion is None and self.blocks.start > self.prompt_len:
            self.finish(CompletionReason.STOP_EOS)


class WritesOneFurther(BlockRequest):
    """Decided tokens land one position too far."""

    def apply(self, span: Span, decision: Decision) -> None:
        super().apply(span, attrs.evolve(decision, tokens=np.roll(decision.tokens, 1)))


class TakesTheRefused(BlockRequest):
    """What is proposed is taken, whether it was accepted or not."""

    def apply(self, span: Span, decision: Decision) -> None:
        super().apply(span, attrs.evolve(decision, accepted=np.ones_like(decision.accepted)))


class HurriesShortAnswers(BlockRequest):
    """Short answers run with one block at a time."""

    def __init__(self, **arguments: Any) -> None:
        context = arguments.pop("context")
        size = 1 if arguments["params"].max_tokens < 7 else context.buffer_size
        super().__init__(context=attrs.evolve(context, buffer_size=size), **arguments)


class CountsPlans(BlockRequest):
    """Every plan takes a number."""

    def plan(self, stored: int, budget: int | None) -> Span | None:
        self._draws += 1
        return super().plan(stored, budget)


class RollsDiceToPlan(BlockRequest):
    """How sure a token must be depends on how often was planned."""

    plans = 0

    def plan(self, stored: int, budget: int | None) -> Span | None:
        span, self.plans = super().plan(stored, budget), self.plans + 1
        if span is None or self.plans % 3:
            return span
        return attrs.evolve(span, groups=tuple(attrs.evolve(group, accept_threshold=0.01) for group in span.groups))


class LendsItsTokens(BlockRequest):
    """Spans hold views of the request's own tokens."""

    def plan(self, stored: int, budget: int | None) -> Span | None:
        span = super().plan(stored, budget)
        return span and attrs.evolve(span, tokens=self.blocks.tokens[span.start : span.end])


class TakesAnything(BlockRequest):
    """Whatever a decision says is written, wherever that is."""

    def apply(self, span: Span, decision: Decision) -> None:
        foreign = ~np.isin(decision.positions, [at for group in span.groups for at in group.positions])
        if foreign.any():
            at = decision.positions[foreign] % len(self.blocks.tokens)
            self.blocks.tokens[at] = decision.tokens[foreign]
            return
        super().apply(span, decision)


class RefusesTooLate(BlockRequest):
    """A decision is counted before it is looked at."""

    def apply(self, span: Span, decision: Decision) -> None:
        self._nfe += 1
        super().apply(span, decision)
        self._nfe -= 1


class ForgetsWhenPreempted(BlockRequest):
    """Losing pages loses the tokens of blocks that are not stored."""

    def preempted(self) -> None:
        table = self.blocks
        first = max(table.start, self.prompt_len)
        decided = np.flatnonzero(table.decided[first : table.end]) + first
        if len(decided) and not any(state.value == "to_cache" for state in table.states):
            table.reopen(decided)


class StartsOverWhenPreempted(BlockRequest):
    """Losing pages starts the draws over."""

    def preempted(self) -> None:
        self._draws = 0


class SharesItsDraws(BlockRequest):
    """All requests count their draws together."""

    counter: ClassVar[Counter[str]] = Counter()

    def apply(self, span: Span, decision: Decision) -> None:
        super().apply(span, decision)
        self.counter["draws"] += span.advances
        self._draws = self.counter["draws"]


class DrawsByItsId(BlockRequest):
    """The id seeds its draws."""

    def __init__(self, **arguments: Any) -> None:
        seed = 1000 + arguments["request_id"]
        super().__init__(**{**arguments, "params": attrs.evolve(arguments["params"], seed=seed)})


class RemembersByItsId(BlockRequest):
    """Seeds are kept by id, for the whole process."""

    seeds: ClassVar[dict[int, int | None]] = {}

    def __init__(self, **arguments: Any) -> None:
        seed = self.seeds.setdefault(arguments["request_id"], arguments["params"].seed)
        super().__init__(**{**arguments, "params": attrs.evolve(arguments["params"], seed=seed)})


class KeepsTheFirstContext(BlockRequest):
    """What the first engine configured holds for all that come later."""

    first: ClassVar[list[Any]] = []

    def __init__(self, **arguments: Any) -> None:
        self.first.append(arguments["context"])
        super().__init__(**{**arguments, "context": self.first[0]})


class RollsSharedDice(BlockRequest):
    """Tokens are accepted by a random generator of the module."""

    def apply(self, span: Span, decision: Decision) -> None:
        luck = RANDOM.random(len(decision.accepted)) < 0.7
        super().apply(span, attrs.evolve(decision, accepted=decision.accepted & luck))


class UnderstatesSlots(BlockRequest):
    """The last block is not counted."""

    def most_slots(self) -> int:
        return super().most_slots() - 1


class UnderstatesRows(BlockRequest):
    """Two blocks never run at once, it says."""

    def most_rows(self) -> int:
        return self.blocks.block_size


class IgnoresItsBudget(BlockRequest):
    """Spans are as long as they like."""

    def plan(self, stored: int, budget: int | None) -> Span | None:
        return super().plan(stored, None)


class IsNeverInPieces(BlockRequest):
    """A prompt is fed whole or not at all, but called chunkable."""

    def plan(self, stored: int, budget: int | None) -> Span | None:
        whole = super().plan(stored, None)
        return whole if whole is not None and (budget is None or whole.rows <= budget) else None


class AsksOneRowBefore(BlockRequest):
    """Every position is decided by the row before it."""

    def plan(self, stored: int, budget: int | None) -> Span | None:
        span = super().plan(stored, budget)
        return span and attrs.evolve(
            span, groups=tuple(attrs.evolve(group, rows=np.maximum(group.rows - 1, 0)) for group in span.groups)
        )


class IgnoresShift(BlockRequest):
    """Every family is taken for an aligned one."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(context=attrs.evolve(arguments.pop("context"), shifted=False), **arguments)


class RemembersWhatItFed(BlockRequest):
    """It goes on behind what it fed itself, not behind what is stored."""

    fed = 0

    def plan(self, stored: int, budget: int | None) -> Span | None:
        return super().plan(max(stored, self.fed), budget)

    def apply(self, span: Span, decision: Decision) -> None:
        super().apply(span, decision)
        self.fed = span.store_until


class StoresDrafts(BlockRequest):
    """A block counts as stored while it is still being decided."""

    def plan(self, stored: int, budget: int | None) -> Span | None:
        span = super().plan(stored, budget)
        if span is None or not span.groups:
            return span
        return attrs.evolve(span, store_until=span.end)

    def apply(self, span: Span, decision: Decision) -> None:
        super().apply(attrs.evolve(span, store_until=min(span.store_until, self.blocks.start)), decision)

    @property
    def known_tokens(self) -> IntArray:
        return self.blocks.tokens[: self.blocks.frontier]


class StoresABlockTooEarly(BlockRequest):
    """A block counts as stored by the forward that decides its last token, before all of them were fed."""

    def plan(self, stored: int, budget: int | None) -> Span | None:
        span = super().plan(min(stored, self.blocks.start), budget)
        if span is None or not span.groups:
            return span
        end = (span.groups[0].block + 1) * self.blocks.block_size
        return attrs.evolve(span, store_until=max(stored, span.store_until, min(span.end, end)))

    @property
    def known_tokens(self) -> IntArray:
        table = self.blocks
        return table.tokens[: table.frontier // table.block_size * table.block_size]


class PublishesItsPrompt(BlockRequest):
    """The prompt is offered to others although all of it sees all of it."""

    @property
    def known_tokens(self) -> IntArray:
        return self.blocks.tokens[: self.blocks.start]


class BlendsWhatItPublishes(BlockRequest):
    """Stored tokens of the answer are fed as blends, and called known all the same."""

    def plan(self, stored: int, budget: int | None) -> Span | None:
        span = super().plan(stored, budget)
        if span is None or span.end <= self.prompt_len:
            return span
        positions = np.arange(max(self.prompt_len, span.start), span.end)
        blends = Blends(
            positions=positions,
            ids=np.stack((self.blocks.tokens[positions], np.zeros_like(positions)), axis=1),
            weights=np.full((len(positions), 2), 0.5, dtype=np.float32),
            match_norm=False,
        )
        return attrs.evolve(span, blends=blends)


class CutsAnywhere(BlockRequest):
    """Pieces of a prompt end wherever the budget does."""

    def plan(self, stored: int, budget: int | None) -> Span | None:
        whole = super().plan(stored, None)
        if whole is None or budget is None or whole.rows <= budget:
            return whole
        end = min(stored + budget, self.blocks.start)
        return super()._known_span(stored, end, end, Phase.DECODE) if end > stored else None


class ReplaysUnderAnotherRule(BlockRequest):
    """After a preemption the prompt is fed as if it had been decoded."""

    def plan(self, stored: int, budget: int | None) -> Span | None:
        span = super().plan(stored, budget)
        replays = span is not None and not span.advances and span.phase is Phase.PREFILL
        return attrs.evolve(span, phase=Phase.DECODE) if span is not None and replays else span


class SendsItself(BlockRequest):
    """Its spans hold a function."""

    def plan(self, stored: int, budget: int | None) -> Span | None:
        span = super().plan(stored, budget)

        @attrs.frozen(kw_only=True, eq=False)
        class Own(Span):
            callback: Any = None

        if span is None:
            return None
        fields = {field.name: getattr(span, field.name) for field in attrs.fields(Span)}
        return Own(**fields, callback=lambda: self)
