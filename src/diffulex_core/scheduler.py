"""Continuous batching: one token budget for prefill chunks and decode windows, preemption when pages run out."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any

import attrs
import numpy as np

from diffulex_core.errors import OutOfPages, PromptTooLong
from diffulex_core.protocols import GuidedReq, JointReq, KVCacheManager, Req, ReqKind
from diffulex_core.types import (
    CompletionReason,
    Decision,
    Outline,
    Span,
    Spans,
    StepOutput,
    StepPlan,
    Window,
    Windows,
)


@attrs.define(eq=False)
class _Entry:
    request: Req
    arrival: int
    sequences: tuple[int, ...]
    """Its sequences in the KV cache."""
    joint: JointReq | None = None
    """The request, where it goes together with others of its kind."""
    kind: ReqKind[Any] | None = None
    """Its kind, once it runs: one object for all whose kinds are equal."""
    last_step: int = -1
    """Step in which it was fed last; those fed longest ago choose first."""
    preemptions: int = 0
    """How often it lost its pages."""
    borrows: bool = False
    """Whether it gave pages back after that step, and will want some again."""


@attrs.define
class _Draft:
    """A step under construction: spans within the row budget."""

    left: int
    block_size: int
    most_refreshed: int | None
    """Most rows of full passes, but for the first of them."""
    refreshed: int = 0
    spans: dict[int, Span | Outline] = attrs.field(factory=dict)
    prefills: list[tuple[Req, int]] = attrs.field(factory=list)

    def fit(self, entry: _Entry, stored: int) -> Span | Outline | None:
        """A request's whole span, or one block's rows of a span that can be cut; None when that does not fit."""
        if entry.joint is not None:
            outline = entry.joint.outline(stored)
            if outline is not None:
                return outline if outline.end - outline.start <= self.left else None
        request = entry.request
        span = request.plan(stored, min(self.left, self.block_size) if request.chunkable(stored) else self.left)
        return None if span is not None and self._too_many(span) else span

    def place(self, request: Req, stored: int, span: Span | Outline) -> None:
        """Take in what `fit` found."""
        self.spans[request.request_id] = span
        rows = span.rows
        self.left -= rows
        if isinstance(span, Outline):
            return
        if span.full_pass:
            self.refreshed += rows
        if request.chunkable(stored):
            self.prefills.append((request, stored))

    def finish(self) -> dict[int, Span | Outline]:
        """Let the prefills share what is left of the budget."""
        for request, stored in self.prefills:
            rows = self.spans[request.request_id].rows
            span = request.plan(stored, rows + self.left)
            assert span is not None, "a larger budget never fits less"
            self.spans[request.request_id] = span
            self.left -= span.rows - rows
        return self.spans

    def _too_many(self, span: Span) -> bool:
        if self.refreshed == 0 or self.most_refreshed is None or not span.full_pass:
            return False
        return self.refreshed + span.rows > self.most_refreshed


class ContinuousScheduler:
    """Scheduler of independent requests.

    In each step every running request asks for its next span. Spans that cannot be cut are placed whole or wait;
    prefills take one block each and then share what is left of the budget, so a long prompt never stalls the others.
    Those fed longest ago are placed first, so nobody starves. Pages go to the oldest request first; when they run out
    the youngest running request is preempted: it loses its pages, keeps its tokens and returns to the queue.

    Pages that a span needs for one step only (`Span.held`) are worth waiting for: a request that finds none is left out
    of the step, except the oldest, so that somebody always goes on. Newcomers leave alone what others are about to
    borrow.
    """

    def __init__(
        self,
        kv_cache: KVCacheManager,
        *,
        max_num_reqs: int,
        max_num_batched_tokens: int,
        block_size: int,
        max_refresh_tokens: int | None = None,
    ) -> None:
        self._kv = kv_cache
        self._most_refreshed = max_refresh_tokens
        self._max_num_reqs = max_num_reqs
        self._budget = max_num_batched_tokens
        self._block_size = block_size
        self._waiting: list[tuple[int, _Entry]] = []
        self._running: dict[int, _Entry] = {}
        self._known: dict[int, _Entry] = {}
        self._ended: list[int] = []
        self._arrivals = 0
        self._step = 0
        self._head_waits = False

    @property
    def num_waiting(self) -> int:
        return len(self._known) - len(self._running)

    @property
    def num_running(self) -> int:
        return len(self._running)

    def add(self, request: Req) -> None:
        if request.request_id in self._known:
            raise KeyError(f"request {request.request_id} was added before")
        sequences = _sequences(request)
        pages = -(-request.most_slots() // self._kv.page_size) * len(sequences)
        if pages > self._kv.num_pages:
            raise PromptTooLong(
                f"The prompt and its answer may need {request.most_slots()} cache slots"
                f"{' twice' * (len(sequences) > 1)} ({pages} pages), but the cache "
                f"has {self._kv.num_pages} pages of {self._kv.page_size}. Raise num_pages or lower max_tokens."
            )
        if request.most_rows() > self._budget:
            raise PromptTooLong(
                f"The request needs {request.most_rows()} rows in one step, but max_num_batched_tokens is "
                f"{self._budget}. Set it to at least {request.most_rows()}."
            )
        joint = request if isinstance(request, JointReq) and request.kind is not None else None
        entry = _Entry(request, self._arrivals, sequences, joint)
        self._arrivals += 1
        self._known[request.request_id] = entry
        heapq.heappush(self._waiting, (entry.arrival, entry))

    def abort(self, request_id: int, reason: CompletionReason = CompletionReason.ABORTED) -> bool:
        entry = self._known.get(request_id)
        if entry is None:
            return False
        entry.request.finish(reason)
        self._forget(entry)
        return True

    def has_work(self) -> bool:
        return bool(self._known)

    def schedule(self) -> StepPlan | None:
        spans: dict[int, Span | Outline] = {}
        while self._known and not spans:
            draft = _Draft(left=self._budget, block_size=self._block_size, most_refreshed=self._most_refreshed)
            newcomers_first, self._head_waits = self._head_waits, False
            if newcomers_first:
                self._admit(draft)
            self._place_running(draft)
            if not newcomers_first:
                self._admit(draft)
                self._head_waits = bool(self._waiting) and len(self._running) < self._max_num_reqs
            spans = self._reserve(draft.finish())
        if not spans:
            return None
        plan = StepPlan(step=self._step, windows=self._windows(spans), ended=tuple(self._ended))
        self._ended.clear()
        self._step += 1
        return plan

    def update(self, plan: StepPlan, output: StepOutput) -> Sequence[Req]:
        windows = Windows.of(plan.windows)
        entries = [self._running.get(request_id) for request_id in windows.request_ids]
        self._apply(entries, windows.spans, output.decisions)
        spans, done = windows.spans, []
        final_ends = spans.store_until.tolist()
        stores = (spans.store_until > np.maximum(spans.start, spans.store_from)).tolist()
        for index, (entry, decision) in enumerate(zip(entries, output.decisions, strict=True)):
            if entry is None:
                continue
            request = entry.request
            entry.last_step = plan.step
            # Of a kind whose requests go on together, nothing becomes known but what is stored.
            if (stores[index] or entry.kind is None) and decision.finite and len(entry.sequences) == 1:
                self._kv.commit(request.request_id, request.known_tokens, final_ends[index])
            if request.completion is not None:
                self._forget(entry)
                done.append(request)
            elif index in spans.special:
                self._take_back(entry, spans.special[index])
            else:
                entry.borrows = False
        return done

    def _apply(self, entries: Sequence[_Entry | None], spans: Spans, decisions: Sequence[Decision]) -> None:
        """Hand the decisions to their requests, to those of a kind at once."""
        together: dict[int, list[int]] = {}
        for index, (entry, decision) in enumerate(zip(entries, decisions, strict=True)):
            if entry is None:
                continue
            if not decision.finite:
                entry.request.finish(CompletionReason.ERROR)
            elif entry.kind is None:
                entry.request.apply(spans[index], decision)
            else:
                together.setdefault(id(entry.kind), []).append(index)
        for indices in together.values():
            own = [entry for index in indices if (entry := entries[index]) is not None]
            assert own[0].kind is not None
            given = [decisions[index] for index in indices]
            own[0].kind.apply([entry.request for entry in own], spans.some(indices), given)

    def check_integrity(self) -> None:
        waiting = {entry.request.request_id for _, entry in self._waiting}
        assert len(waiting) == len(self._waiting), "a request waits twice"
        assert waiting.isdisjoint(self._running), "a request waits and runs"
        assert waiting | set(self._running) == set(self._known), "a request is lost"
        assert len(self._running) <= self._max_num_reqs
        assert self._known or self._kv.num_free_pages == self._kv.num_pages, "pages leak"
        self._kv.check_integrity()

    def _place_running(self, draft: _Draft) -> None:
        """Spans of the running requests, those fed longest ago first. One that waits for pages takes up no rows."""
        free = self._kv.num_free_pages
        for entry in sorted(self._running.values(), key=attrgetter("last_step", "arrival")):
            request = entry.request
            if request.request_id in draft.spans:
                continue
            stored = self._kv.stored(request.request_id)
            span = draft.fit(entry, stored)
            if span is None:
                continue
            if span.held is not None:
                missing = max(0, self._missing(entry, span.slots))
                if missing > free and entry is not self._oldest:
                    continue
                free -= missing
            draft.place(request, stored, span)

    def _admit(self, draft: _Draft) -> None:
        """Start waiting requests, oldest first, while rows and pages last. Nobody is preempted for them."""
        borrowed = self._borrowed(draft) if self._waiting else 0
        while self._waiting and len(self._running) < self._max_num_reqs:
            _, entry = self._waiting[0]
            request = entry.request
            stored = min(
                self._kv.open(sequence, request.known_tokens, request.prompt_len) for sequence in entry.sequences
            )
            span = draft.fit(entry, stored)
            try:
                if span is not None:
                    self._reserve_all(entry, len(request.stored_tokens), leaving=borrowed)
            except OutOfPages:
                span = None
            if span is None:
                self._release(entry)
                return
            draft.place(request, stored, span)
            heapq.heappop(self._waiting)
            entry.kind = self._kind(entry)
            self._running[request.request_id] = entry

    def _kind(self, entry: _Entry) -> ReqKind[Any] | None:
        """The request's kind, as others that run have it."""
        kind = None if entry.joint is None else entry.joint.kind
        return next((other.kind for other in self._running.values() if other.kind == kind), kind)

    def _reserve(self, spans: dict[int, Span | Outline]) -> dict[int, Span | Outline]:
        """Pages for the spans, oldest request first, preempting the youngest running one whenever they run out.

        The oldest always gets its pages, since it fits alone; a request may have to preempt itself. Others that need
        pages for this step only are left out when the oldest took what they had counted on.
        """
        granted: dict[int, Span | Outline] = {}
        for request_id in sorted(spans, key=lambda request_id: self._running[request_id].arrival):
            entry, span = self._running.get(request_id), spans[request_id]
            while entry is not None and request_id in self._running:
                try:
                    self._reserve_all(entry, span.slots)
                except OutOfPages:
                    if span.held is not None and entry is not self._oldest:
                        break
                    self._preempt(max(filter(self._pages, self._running.values()), key=lambda other: other.arrival))
                else:
                    granted[request_id] = span
                    break
        return granted

    @property
    def _oldest(self) -> _Entry:
        return min(self._running.values(), key=lambda entry: entry.arrival)

    def _pages(self, entry: _Entry) -> int:
        """Pages that the request holds."""
        return sum(len(self._kv.page_table(sequence)) for sequence in entry.sequences)

    def _reserve_all(self, entry: _Entry, slots: int, leaving: int = 0) -> None:
        """Pages for all sequences of a request, or none.

        Args:
            leaving: pages that must be free afterwards.
        Raises:
            OutOfPages: they do not suffice.
        """
        if leaving or len(entry.sequences) > 1:
            missing = self._missing(entry, slots)
            if missing + leaving > self._kv.num_free_pages:
                raise OutOfPages(f"{missing} pages needed and {leaving} to be left, {self._kv.num_free_pages} free")
        for sequence in entry.sequences:
            self._kv.reserve(sequence, slots)

    def _take_back(self, entry: _Entry, span: Span) -> None:
        """The pages that a request needed for one step only."""
        entry.borrows = span.held is not None
        if span.held is not None:
            for sequence in entry.sequences:
                self._kv.truncate(sequence, span.held)

    def _borrowed(self, draft: _Draft) -> int:
        """Pages that running requests want for the next step only."""
        pages = 0
        for request_id, entry in self._running.items():
            if entry.borrows:
                span = draft.spans.get(request_id) or entry.request.plan(self._kv.stored(request_id), None)
                pages += max(0, self._missing(entry, 0 if span is None else span.slots))
        return pages

    def _missing(self, entry: _Entry, slots: int) -> int:
        """Pages that the request's sequences lack for so many slots each; below 0 where they hold more."""
        return len(entry.sequences) * -(-slots // self._kv.page_size) - self._pages(entry)

    def _release(self, entry: _Entry) -> None:
        for sequence in entry.sequences:
            self._kv.release(sequence)

    def _preempt(self, entry: _Entry) -> None:
        request_id = entry.request.request_id
        del self._running[request_id]
        self._release(entry)
        entry.borrows = False
        entry.preemptions += 1
        entry.request.preempted()
        heapq.heappush(self._waiting, (entry.arrival, entry))

    def _forget(self, entry: _Entry) -> None:
        request_id = entry.request.request_id
        del self._known[request_id]
        self._ended.append(request_id)
        if self._running.pop(request_id, None) is not None:
            self._release(entry)
        else:
            self._waiting = [pair for pair in self._waiting if pair[1] is not entry]
            heapq.heapify(self._waiting)

    def _windows(self, granted: Mapping[int, Span | Outline]) -> Windows:
        """The windows of the plan. What was outlined becomes spans of all requests of a kind at once."""
        alone = {request_id: span for request_id, span in granted.items() if isinstance(span, Span)}
        if len(alone) == len(granted):
            return Windows.of([self._window(self._running[request_id], span) for request_id, span in alone.items()])
        entries = [self._running[request_id] for request_id in granted]
        requests, planned = [entry.request for entry in entries], [*granted.values()]
        kinds = [
            entry.kind if isinstance(span, Outline) else None for entry, span in zip(entries, planned, strict=True)
        ]
        parts = []
        for kind, run in groupby(range(len(kinds)), key=kinds.__getitem__):
            indices = [*run]
            if kind is None:
                parts.append(Spans.of([span for at in indices if isinstance(span := planned[at], Span)]))
            else:
                outlines = [span for at in indices if isinstance(span := planned[at], Outline)]
                parts.append(kind.plan([requests[at] for at in indices], outlines))
        return Windows(
            spans=Spans.joined(parts),
            request_ids=[*granted],
            prompt_lens=[request.prompt_len for request in requests],
            page_tables=[self._kv.page_table(request_id) for request_id in granted],
            params=[request.params for request in requests],
            draws=[request.draws for request in requests],
            preemptions=[entry.preemptions for entry in entries],
            second_tables={
                at: self._kv.page_table(entry.sequences[-1])
                for at, entry in enumerate(entries)
                if len(entry.sequences) > 1
            },
        )

    def _window(self, entry: _Entry, span: Span) -> Window:
        request = entry.request
        return Window(
            request_id=request.request_id,
            span=span,
            prompt_len=request.prompt_len,
            page_table=self._kv.page_table(request.request_id),
            params=request.params,
            draw=request.draws,
            second_table=self._kv.page_table(entry.sequences[-1]) if len(entry.sequences) > 1 else None,
            preemptions=entry.preemptions,
        )


def _sequences(request: Req) -> tuple[int, ...]:
    """The request's sequences in the KV cache: its own, and where it is guided a second one with a negative id."""
    request_id = request.request_id
    return (request_id, ~request_id) if isinstance(request, GuidedReq) and request.guided else (request_id,)
