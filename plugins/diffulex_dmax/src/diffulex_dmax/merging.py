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
        smooth = self.options.token_merge_mode == "iter_smooth_topk"
        # A certain token's blend is its own embedding, up to rounding.
        merged = decided if smooth else decided & (confidence < 1)
        at = np.flatnonzero(merged)
        if probable is not None:
            probable = Alternatives(tokens=probable.tokens[at], probabilities=probable.probabilities[at])
        if smooth:
            assert probable is not None
            own_ids = np.column_stack((tokens[at], probable.tokens))
            own = np.column_stack((np.ones(len(at)), self.options.token_merge_weight * probable.probabilities))
        else:
            own_ids, own = self._by_probability(tokens[at], confidence[at], probable)
        ids = np.zeros((len(tokens), own_ids.shape[1]), dtype=np.int64)
        weights = np.zeros(ids.shape, dtype=np.float32)
        ids[at], weights[at] = own_ids, own
        return Merged(merged=merged, ids=ids, weights=weights)

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
    """What is fed of n consecutive positions.

    Attributes:
        merged: [n] bool: positions that are fed a sum of embeddings; the others are fed their token.
        ids: [n, k]; weights: [n, k] float32; both mean nothing where no sum is fed.
    """

    merged: BoolArray
    ids: IntArray
    weights: FloatArray


class Merges:
    """The merge descriptors of one request, position by position.

    They are kept past a block's store, so that a request that lost its pages rebuilds the same K/V.
    """

    def __init__(self, rule: MergeRule) -> None:
        self.rule = rule
        self._begin = 0
        """Position of the first row."""
        self._merged: BoolArray = np.zeros(0, dtype=np.bool_)
        self._ids: IntArray = np.zeros((0, 0), dtype=np.int64)
        self._weights: FloatArray = np.zeros((0, 0), dtype=np.float32)

    def put(self, position: int, merged: BoolArray, ids: IntArray, weights: FloatArray) -> None:
        """Take over the descriptors of consecutive positions, in place of what was known of them.

        Args:
            position: of the first; descriptors that came before begin at or before it.
            merged, ids, weights: as in `Merged`.
        """
        if not len(self._merged):
            self._begin = position
        first = position - self._begin
        last = first + len(merged)
        if last > len(self._merged):
            self._grow(last, ids.shape[1])
        self._merged[first:last] = merged
        self._ids[first:last] = ids
        self._weights[first:last] = weights

    def within(self, start: int, end: int) -> tuple[int, BoolArray, IntArray, FloatArray]:
        """The descriptors of `[start, end)`, as far as anything is known.

        Returns:
            The first position that they are of, [n] whether each is fed a sum, and [n, k] the sums.
        """
        first = max(start, self._begin)
        own = slice(first - self._begin, max(end, first) - self._begin)
        return first, self._merged[own], self._ids[own], self._weights[own]

    def between(self, start: int, end: int) -> Blends | None:
        """What is fed blended of `[start, end)`; None where nothing is."""
        first, merged, ids, weights = self.within(start, end)
        if not merged.any():
            return None
        return Blends(
            positions=np.flatnonzero(merged) + first,
            ids=ids[merged],
            weights=weights[merged],
            match_norm=self.rule.match_norm,
        )

    def _grow(self, rows: int, width: int) -> None:
        """Make room for at least so many rows; those that are new are not merged."""
        have = len(self._merged)
        room = max(_FIRST_ROOM, rows, 2 * have)
        merged, ids = np.zeros(room, dtype=np.bool_), np.zeros((room, width), dtype=np.int64)
        weights = np.zeros((room, width), dtype=np.float32)
        if have:
            merged[:have], ids[:have], weights[:have] = self._merged, self._ids, self._weights
        self._merged, self._ids, self._weights = merged, ids, weights


def blended(each: Sequence[Merges], spans: Sequence[tuple[int, int]]) -> BlendColumns | None:
    """What is fed blended of some requests' spans `[start, end)`; None where nothing is."""
    held, shifts, row = list[tuple[BoolArray, IntArray, FloatArray]](), list[int](), 0
    for merges, (start, end) in zip(each, spans, strict=True):
        first, merged, ids, weights = merges.within(start, end)
        if len(merged):
            held.append((merged, ids, weights))
            shifts.append(row + first - start)
        row += end - start
    if not held:
        return None
    merged, ids, weights = (np.concatenate(column) for column in zip(*held, strict=True))
    at = np.flatnonzero(merged)
    if len(at) == 0:
        return None
    sizes = np.array([len(known) for known, _, _ in held])
    rows = at + np.repeat(np.array(shifts) - (np.cumsum(sizes) - sizes), sizes)[at]
    return BlendColumns(
        rows=rows, ids=ids[at], weights=weights[at], match_norm=np.full(len(at), each[0].rule.match_norm)
    )
