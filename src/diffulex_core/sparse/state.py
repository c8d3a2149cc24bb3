"""What a canvas knows of its kept K/V, and the spans that follow from it."""

from __future__ import annotations

from typing import NamedTuple

import attrs
import numpy as np

from diffulex_core.canvas.rule import Region
from diffulex_core.pattern import IntArray
from diffulex_core.sparse.config import SparseConfig
from diffulex_core.sparse.phases import CachePhase, phase
from diffulex_core.types import Refresh, Span


class Frame(NamedTuple):
    """The part of a sequence that a step feeds; each number is named as in `Span`. Without any it is a full pass."""

    start: int
    end: int
    store_from: int = 0
    refresh: Refresh | None = None
    packed: int | None = None
    held: int | None = None


@attrs.define(kw_only=True, eq=False)
class SparseState:
    """Counts the steps of the current block and remembers the pass that kept K/V. Positions are absolute.

    Attributes:
        config: how the request wants it.
    """

    config: SparseConfig
    _bounds: tuple[int, int] | None = attrs.field(default=None, init=False)
    _step: int = attrs.field(default=0, init=False)
    _since: int = attrs.field(default=0, init=False)
    """Steps since the pass that kept K/V, itself included."""
    _refreshed: Span | None = attrs.field(default=None, init=False)
    """That pass, without anything to sample; None where nothing is kept."""
    _lost: bool = attrs.field(default=False, init=False)

    def frame(self, tokens: IntArray, region: Region, *, row_before: bool) -> Frame | Span:
        """The part of the sequence that the next step feeds, and what becomes of its K/V; changes nothing.

        Args:
            tokens: [n] prompt and canvas.
            region: what is being decided.
            row_before: the row before the region is needed.
        Returns:
            The part; or a pass that restores what was kept, and does not advance.
        """
        start, end = region.start, region.end
        outside = len(tokens) - (end - start)
        keep = self.config.kept_of(outside)
        match self._phase(tokens, region):
            case CachePhase.FULL:
                return Frame(start=0, end=len(tokens), held=0)
            case CachePhase.REFRESH:
                refresh = Refresh(
                    start=start,
                    end=end,
                    keep=keep,
                    per_head=self.config.head_select,
                    # A wider one sees nothing more, and could be as wide as any whole number.
                    pool=min(self.config.pool_kernel, 2 * outside - 1),
                )
                return Frame(start=0, end=len(tokens), refresh=refresh, held=keep)
        if self._lost and self._refreshed is not None:
            return self._refreshed
        held = 0 if region.last else keep
        return Frame(start=start - row_before, end=end, store_from=start, packed=keep, held=held)

    def took(self, span: Span, region: Region) -> None:
        """The step is over: a span of what `frame` gave was executed."""
        if not span.advances:
            self._lost = False
            return
        if self._bounds != (region.start, region.end):
            self._bounds, self._step = (region.start, region.end), 0
        self._step += 1
        self._since += 1
        if span.refresh is not None:
            self._since = 1
            self._refreshed = attrs.evolve(span, groups=(), advances=False)
        if not span.held:
            self._refreshed = None
        self._lost = False

    def preempted(self) -> None:
        """The pages are gone."""
        self._lost = self._refreshed is not None

    def _phase(self, tokens: IntArray, region: Region) -> CachePhase:
        inside = slice(region.start, region.end)
        if self._bounds != (region.start, region.end):
            return phase(self.config, step=0, since=None, drift=0.0, last=region.last)
        since, drift = None, 0.0
        if self._refreshed is not None:
            changed = tokens != self._refreshed.tokens
            count = np.count_nonzero(changed[inside])
            drift = count / (region.end - region.start)
            since = self._since if np.count_nonzero(changed) == count else None
        return phase(self.config, step=self._step, since=since, drift=drift, last=region.last)
