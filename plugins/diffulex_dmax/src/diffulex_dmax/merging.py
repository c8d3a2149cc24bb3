"""What dmax feeds in place of a decided token's embedding, kept for all blocks of a request until it ends."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import numpy as np

from diffulex_core.blocks import BlendColumns
from diffulex_core.plugin import Alternatives, Blends, BoolArray, FloatArray, IntArray
from diffulex_dmax.options import DMaxOptions

_FIRST_ROOM = 64


@attrs.frozen(kw_only=True)
class MergeRule:
    """How tokens are merged: the same for all requests of an engine.

    Attributes:
        options: the strategy's.
        mask_token_id: the mask, which takes what tokens leave of the probability.
        top_k: tokens that are merged at each position.
    """

    options: DMaxOptions
    mask_token_id: int
    top_k: int

    @classmethod
    def of(cls, options: DMaxOptions, *, mask_token_id: int, vocab_size: int | None) -> MergeRule:
        """That of an engine; `vocab_size` bounds the tokens that are merged, None = unknown."""
        top_k = min(options.token_merge_top_k, vocab_size or options.token_merge_top_k)
        return cls(options=options, mask_token_id=mask_token_id, top_k=top_k)

    @property
    def alternatives(self) -> int:
        """Probable tokens that are needed of each row besides the chosen one."""
        options = self.options
        if not options.merges or (options.token_merge_mode == "dmax_topk" and self.top_k == 1):
            return 0
        return self.top_k

    @property
    def match_norm(self) -> bool:
        """Whether sums are scaled to the weighted sum of the norms."""
        return self.options.token_merge_mode == "dmax_topk" and self.options.token_merge_renormalize

    def describe(
        self, tokens: IntArray, confidence: FloatArray, decided: BoolArray, probable: Alternatives | None
    ) -> Merged | None:
        """What is to be fed of some positions after a step; None = nothing is ever merged.

        Args:
            tokens: [n] their tokens after the step.
            confidence: [n] how sure the model is of them; exactly 1 where the token counts as certain.
            decided: [n] whether they have a token after the step.
            probable: [n, alternatives] most probable tokens of each.
        """
        if not self.options.merges:
            return None
        if self.options.token_merge_mode == "iter_smooth_topk":
            assert probable is not None
            ids = np.column_stack((tokens, probable.tokens))
            weights = np.column_stack((np.ones(len(tokens)), self.options.token_merge_weight * probable.probabilities))
            return Merged(merged=decided, ids=ids, weights=weights.astype(np.float32))
        ids, weights = self._by_probability(tokens, confidence, probable)
        # A certain token's blend is its own embedding, up to rounding.
        return Merged(merged=decided & (confidence < 1), ids=ids, weights=weights.astype(np.float32))

    def _by_probability(
        self, tokens: IntArray, confidence: FloatArray, probable: Alternatives | None
    ) -> tuple[IntArray, FloatArray]:
        """The chosen token, the most probable others, and the mask with what is left: ids and weights, [n, k + 1]."""
        others = self.top_k - 1
        ids = np.full((len(tokens), others + 2), self.mask_token_id, dtype=np.int64)
        weights = np.zeros(ids.shape)
        ids[:, 0], weights[:, 0] = tokens, np.clip(confidence, 0.0, 1.0)
        if others:
            assert probable is not None
            # Where the chosen token is not among them, the least probable one is left over.
            chosen = probable.tokens == tokens[:, None]
            order = np.argsort(chosen, axis=1, kind="stable")[:, :others]
            ids[:, 1:-1] = np.take_along_axis(probable.tokens, order, axis=1)
            # Where fewer tokens are possible than are merged, the last ones repeat others at probability 0.
            weights[:, 1:-1] = np.take_along_axis(np.where(chosen, 0.0, probable.probabilities), order, axis=1)
        weights[:, -1] = np.maximum(0.0, 1.0 - weights.sum(axis=1))
        return ids, weights


@attrs.frozen(kw_only=True, eq=False)
class Merged:
    """Sums of embeddings at n consecutive positions.

    Attributes:
        merged: [n] bool: positions that are fed one; the others are fed their token.
        ids: [n, k]; weights: [n, k] float32.
    """

    merged: BoolArray
    ids: IntArray
    weights: FloatArray

    def part(self, first: int, last: int) -> Merged:
        """Those of some of the positions."""
        return Merged(merged=self.merged[first:last], ids=self.ids[first:last], weights=self.weights[first:last])


class Merges:
    """The merge descriptors of one request, position by position.

    They are kept past a block's store, so that a request that lost its pages rebuilds the same K/V.
    """

    def __init__(self, rule: MergeRule) -> None:
        self.rule = rule
        self._begin = 0
        """Position of the first row."""
        self._held: Merged | None = None

    def put(self, position: int, merged: Merged) -> None:
        """Take over the descriptors of consecutive positions, in place of what was known of them.

        Args:
            position: of the first; descriptors that came before begin at or before it.
            merged: theirs.
        """
        held = self._held
        if held is None:
            self._begin = position
        first = position - self._begin
        last = first + len(merged.merged)
        if held is None or last > len(held.merged):
            held = self._held = _grown(held, last, like=merged)
        held.merged[first:last] = merged.merged
        held.ids[first:last] = merged.ids
        held.weights[first:last] = merged.weights

    def within(self, start: int, end: int) -> tuple[int, Merged | None]:
        """The descriptors of `[start, end)`, and the first position that they are of; None where nothing is known."""
        if self._held is None:
            return start, None
        first = max(start, self._begin)
        return first, self._held.part(first - self._begin, max(end, first) - self._begin)

    def between(self, start: int, end: int) -> Blends | None:
        """What is fed blended of `[start, end)`; None where nothing is."""
        first, held = self.within(start, end)
        if held is None or not held.merged.any():
            return None
        return Blends(
            positions=np.flatnonzero(held.merged) + first,
            ids=held.ids[held.merged],
            weights=held.weights[held.merged],
            match_norm=self.rule.match_norm,
        )


def blended(each: Sequence[Merges], spans: Sequence[tuple[int, int]]) -> BlendColumns | None:
    """What is fed blended of some requests' spans `[start, end)`; None where nothing is."""
    found, shifts, row = list[Merged](), list[int](), 0
    for merges, (start, end) in zip(each, spans, strict=True):
        first, held = merges.within(start, end)
        if held is not None:
            found.append(held)
            shifts.append(row + first - start)
        row += end - start
    if not found:
        return None
    merged = np.concatenate([held.merged for held in found])
    at = np.flatnonzero(merged)
    if len(at) == 0:
        return None
    sizes = np.array([len(held.merged) for held in found])
    rows = np.arange(len(merged)) + np.repeat(np.array(shifts) - (np.cumsum(sizes) - sizes), sizes)
    return BlendColumns(
        rows=rows[at],
        ids=np.concatenate([held.ids for held in found])[at],
        weights=np.concatenate([held.weights for held in found])[at],
        match_norm=np.full(len(at), each[0].rule.match_norm),
    )


def _grown(held: Merged | None, rows: int, *, like: Merged) -> Merged:
    """The same with room for at least so many rows, of which those that are new are not merged."""
    room = max(_FIRST_ROOM, rows, 0 if held is None else 2 * len(held.merged))
    grown = Merged(
        merged=np.zeros(room, dtype=np.bool_),
        ids=np.zeros((room, like.ids.shape[1]), dtype=np.int64),
        weights=np.zeros((room, like.weights.shape[1]), dtype=np.float32),
    )
    if held is not None:
        own = slice(len(held.merged))
        grown.merged[own], grown.ids[own], grown.weights[own] = held.merged, held.ids, held.weights
    return grown
