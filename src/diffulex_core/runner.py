"""Executing a plan: pack the rows, run the model, sample once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from diffulex_core.beliefs import Beliefs
from diffulex_core.context import ForwardContext, Refreshing, SoftInputs
from diffulex_core.graphs.forward import EagerForward, Forward
from diffulex_core.hidden_rows import HiddenRows
from diffulex_core.kv_store import KVStore
from diffulex_core.layout import Layout
from diffulex_core.packing import BlendedRows, PackedStep, pack, parts_of_head
from diffulex_core.padding import ROW_MULTIPLE, round_up
from diffulex_core.pattern import AttentionPattern, IntArray
from diffulex_core.placed import PlacedLayout
from diffulex_core.profiling.stages import StageClock, stage_seconds
from diffulex_core.protocols import (
    AttentionBackend,
    BelievingSampler,
    CachePolicy,
    DiffusionModel,
    PartwiseSampler,
    Sampler,
    SelfConditioned,
    SoftInputNetwork,
)
from diffulex_core.sampling.facts import SelectingNetwork, SelectingSampler
from diffulex_core.transfer import on_device
from diffulex_core.types import CARRIED, BoolArray, Decision, StepOutput, StepPlan


class EagerRunner:
    """Runs every step eagerly on one device.

    Keeps the model's weights and the pages and, for each request, what its next step needs besides: one hidden row
    where a family's logits are shifted, and what the step before believed where a strategy feeds that back.
    """

    def __init__(
        self,
        *,
        model: DiffusionModel,
        sampler: Sampler,
        pattern: AttentionPattern,
        backend: AttentionBackend,
        kv_store: KVStore,
        page_size: int,
        device: torch.device,
        max_logits_tokens: int | None = None,
        cache_policy: CachePolicy | None = None,
        forward: Forward | None = None,
    ) -> None:
        """`forward` runs the network; None = it is called as it is."""
        self._model: DiffusionModel | None = model
        self._forward: Forward | None = EagerForward(model) if forward is None else forward
        self._sampler = sampler
        self._pattern = pattern
        self._backend = backend
        self._kv_store: KVStore | None = kv_store
        self._page_size = page_size
        self._device = device
        self._placed: PlacedLayout | None = None
        self._kept = HiddenRows()
        self._beliefs = Beliefs()
        self._partwise = sampler if isinstance(sampler, PartwiseSampler) else None
        self._selecting = sampler if isinstance(sampler, SelectingSampler) else None
        self._selects = model if isinstance(model, SelectingNetwork) and model.selects else None
        self._max_logits_tokens = max_logits_tokens
        self._cache_policy = cache_policy
        self._clock = StageClock()
        self._work: Callable[[], None] | None = None

    @property
    def clock(self) -> StageClock:
        """The clock of its stages."""
        return self._clock

    def at_leisure(self, work: Callable[[], None]) -> None:
        self._work = work

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepOutput:
        assert self._model is not None, "the runner is closed"
        assert self._forward is not None, "the runner is closed"
        self._clock.reset()
        self._clock.begin("pack")
        self._kept.drop(plan.ended)
        self._beliefs.drop(plan.ended)
        before = None if self._placed is None else self._placed.layout
        step = pack(plan, self._pattern, self._model.windows, self._page_size, before)
        placed = self._place(step.layout)
        inputs = self._move(step.input_ids), placed.positions, self._context(step, placed)
        self._clock.begin("forward")
        hidden, how = self._forward(plan, *inputs)
        self._clock.begin("sample")
        chosen = self._head_input(hidden, step)
        if step.kept:
            self._kept.keep(step.kept, hidden[self._move(step.kept_rows)])
        count = len(step.head_rows)
        if count == 0:
            self._meanwhile()
            nothing = tuple(_nothing() for _ in plan.windows)
            return StepOutput(decisions=nothing, head_rows=0, stages=stage_seconds(self._clock), how=how)
        decisions = tuple(self._sample(chosen, step))
        return StepOutput(decisions=decisions, head_rows=len(chosen), stages=stage_seconds(self._clock), how=how)

    def close(self) -> None:
        self._model = None
        self._forward = None
        self._selects = None
        self._kv_store = None
        self._placed = None
        self._kept = HiddenRows()
        self._beliefs = Beliefs()

    def _meanwhile(self) -> None:
        """The device has all that it is to do for the step: time for what else there is to do."""
        self._clock.pause()
        if self._work is not None:
            self._work()

    def _sample(self, chosen: Tensor, step: PackedStep) -> Sequence[Decision]:
        """Head and sampler, over as many rows at a time as they may take."""
        count = len(step.head_rows)
        parts = [(0, count)]
        if self._partwise is not None and self._max_logits_tokens is not None:
            parts = parts_of_head(count, step.guided.at, self._max_logits_tokens)
        if step.remembered:
            return self._sample_and_believe(chosen, step, parts)
        model, selecting = self._selects, self._selecting
        if selecting is not None and model is not None:
            by_facts = selecting.selectable(step.sampling)
            by_facts[step.guided.at] = False
            if by_facts.any():
                return self._select(chosen, step, model, selecting, by_facts)
        if self._partwise is None:
            logits = self._logits(chosen, step, np.arange(count))
            self._meanwhile()
            self._clock.begin("sample")
            return self._sampler.sample(logits, step.sampling)
        scored = [
            self._partwise.score(self._logits(chosen, step, np.arange(begin, end)), step.sampling.part(begin, end))
            for begin, end in parts
        ]
        return self._decide(self._partwise, scored, step)

    def _select(
        self, chosen: Tensor, step: PackedStep, model: SelectingNetwork, sampler: SelectingSampler, by_facts: BoolArray
    ) -> Sequence[Decision]:
        """As `_sample`; of the rows `by_facts` no logits are kept."""
        rows, others = np.flatnonzero(by_facts), np.flatnonzero(~by_facts)
        batch = step.sampling.at(rows)
        wanted = sampler.wanted(model.columns, batch)
        facts = model.select(chosen[self._move(np.resize(rows, round_up(len(rows))))], wanted).first(len(rows))
        scored = sampler.score_facts(facts, model.columns, batch)
        if len(others):
            whole = scored.new_empty(len(scored), len(by_facts))
            whole[:, self._move(rows)] = scored
            guided = np.searchsorted(others, step.guided.at)
            for begin, end in parts_of_head(len(others), guided, self._max_logits_tokens or 2 * len(others)):
                part = others[begin:end]
                logits = self._logits(chosen, step, part)
                whole[:, self._move(part)] = sampler.score(logits, step.sampling.at(part))
            scored = whole
        return self._decide(sampler, [scored], step)

    def _decide(self, sampler: PartwiseSampler, scored: Sequence[Tensor], step: PackedStep) -> Sequence[Decision]:
        """The decisions from the facts of all parts of the head's rows; waits for the device."""
        facts = scored[0] if len(scored) == 1 else torch.cat(tuple(scored), dim=1)
        self._meanwhile()
        self._clock.begin("copy")
        return sampler.decide(facts, step.sampling)

    def _logits(self, chosen: Tensor, step: PackedStep, wanted: IntArray) -> Tensor:
        """[n, columns]: logits of n of the head's rows, ascending, joined with those of their second rows."""
        assert self._model is not None
        if len(wanted) == len(chosen) and len(chosen) % ROW_MULTIPLE == 0:
            return self._model.logits(chosen)
        guided = np.flatnonzero(np.isin(step.guided.at, wanted)) if len(step.guided.at) else step.guided.at
        count, rows = len(wanted), np.concatenate((wanted, len(step.head_rows) + guided))
        padding = np.zeros(round_up(len(rows)) - len(rows), dtype=np.int64)
        logits = self._model.logits(chosen[self._move(np.concatenate((rows, padding)))])
        own, without = logits[:count], logits[count : len(rows)].float()
        if len(guided) == 0:
            return own
        at = self._move(np.searchsorted(wanted, step.guided.at[guided]))
        weight = on_device(step.guided.scale[guided], own.device)[:, None] + 1
        own = own.float()
        return own.index_copy(0, at, without + weight * (own[at] - without))

    def _sample_and_believe(
        self, chosen: Tensor, step: PackedStep, parts: Sequence[tuple[int, int]]
    ) -> Sequence[Decision]:
        """As `_sample`, and keep the embeddings that the remembered rows expect."""
        model, sampler = self._model, self._sampler
        assert isinstance(model, SelfConditioned), "a strategy that remembers requires self_conditioning"
        assert isinstance(sampler, BelievingSampler), "a strategy that remembers brings a sampler that says what from"
        scored, embeddings = list[Tensor](), list[Tensor]()
        for begin, end in parts:
            logits = self._logits(chosen, step, np.arange(begin, end))
            facts, believed = sampler.score_and_believe(logits, step.sampling.part(begin, end))
            scored.append(facts)
            first, last = np.searchsorted(step.remembered_rows, (begin, end)).tolist()
            rows = step.remembered_rows[first:last] - begin
            if len(rows) != len(believed) or len(rows) % ROW_MULTIPLE:
                believed = believed[self._move(np.resize(rows, round_up(len(rows))))]
            if len(rows):
                embeddings.append(model.soft_embeddings(believed)[: len(rows)])
        self._beliefs.keep(step.remembered, torch.cat(embeddings))
        return self._decide(sampler, scored, step)

    def _soft_inputs(self, step: PackedStep) -> SoftInputs | None:
        if step.blended is not None:
            return self._blend(step.blended)
        if not step.recalled:
            return None
        return SoftInputs(rows=self._move(step.recalled_rows), embeddings=self._beliefs.take(step.recalled))

    def _blend(self, blended: BlendedRows) -> SoftInputs:
        model, weights = self._model, on_device(blended.weights, self._device)
        assert isinstance(model, SoftInputNetwork), "a strategy that blends requires soft_inputs"
        embeddings = model.blend(self._move(blended.ids), weights, self._move(blended.match_norm))
        return SoftInputs(rows=self._move(blended.rows), embeddings=embeddings[: len(blended.rows)])

    def _head_input(self, hidden: Tensor, step: PackedStep) -> Tensor:
        """[rows, hidden] -> [head rows + second rows, hidden]; rows of earlier steps stand where they are asked for."""
        chosen = hidden[self._move(np.concatenate((np.maximum(step.head_rows, 0), step.guided.rows)))]
        if step.carried:
            chosen[self._move(np.flatnonzero(step.head_rows == CARRIED))] = self._kept.take(step.carried)
        return chosen

    def _place(self, layout: Layout) -> PlacedLayout:
        """The layout on the device, where it is already if the step before had it."""
        if self._placed is None or self._placed.layout is not layout:
            self._placed = PlacedLayout.of(layout, self._page_size, self._device)
        return self._placed

    def _context(self, step: PackedStep, placed: PlacedLayout) -> ForwardContext:
        assert self._kv_store is not None
        return ForwardContext(
            slots=placed.slots,
            key_pages=self._kv_store.key_pages,
            value_pages=self._kv_store.value_pages,
            batches=placed.batches,
            backend=self._backend,
            final=placed.final,
            soft=self._soft_inputs(step),
            refreshes=tuple(
                Refreshing(start=each.start, end=each.end, slots=self._move(each.slots), refresh=each.refresh)
                for each in step.refreshes
            ),
            cache_policy=self._cache_policy,
        )

    def _move(self, values: IntArray | BoolArray) -> Tensor:
        return on_device(values, self._device)


def _nothing() -> Decision:
    empty = np.empty(0, dtype=np.int64)
    return Decision(
        positions=empty, tokens=empty, confidence=np.empty(0, dtype=np.float32), accepted=np.empty(0, dtype=np.bool_)
    )
