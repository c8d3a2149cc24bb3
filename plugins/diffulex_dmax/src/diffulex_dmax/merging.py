"""What dmax feeds in place of a decided token's embedding, kept for all blocks of a request until it ends."""

from __future__ import annotations

import attrs
import numpy as np

from diffulex_core.plugin import Alternatives, Blends, BoolArray, FloatArray, IntArray
from diffulex_dmax.options import DMaxOptions


@attrs.frozen(kw_only=True, eq=False)
class _Part:
    """Sums of embeddings at some positions: [n], [n, k], [n, k]."""

    positions: IntArray
    ids: IntArray
    weights: FloatArray


class Merges:
    """The merge descriptors of one request, block by block.

    They are kept past a block's store, so that a request that lost its pages rebuilds the same K/V.
    """

    def __init__(self, options: DMaxOptions, *, mask_token_id: int, vocab_size: int | None = None) -> None:
        """`vocab_size` bounds the tokens that are merged; None = unknown."""
        self._options = options
        self._top_k = min(options.token_merge_top_k, vocab_size or options.token_merge_top_k)
        self._mask = mask_token_id
        self._parts: dict[int, _Part] = {}

    @property
    def alternatives(self) -> int:
        """Probable tokens that are needed of each row besides the chosen one."""
        options = self._options
        if not options.merges or (options.token_merge_mode == "dmax_topk" and self._top_k == 1):
            return 0
        return self._top_k

    def replace(
        self,
        block: int,
        *,
        positions: IntArray,
        tokens: IntArray,
        confidence: FloatArray,
        decided: BoolArray,
        probable: Alternatives | None,
    ) -> None:
        """Take over a block's descriptors from a step; positions without a token have none.

        Args:
            block: its index; what was known of it is forgotten.
            positions: [n] its positions that are not prompt.
            tokens: [n] their tokens after the step.
            confidence: [n] how sure the model is of them; exactly 1 where the token counts as certain.
            decided: [n] whether they have a token after the step.
            probable: [n, alternatives] most probable tokens of each.
        """
        if not self._options.merges:
            return
        if self._options.token_merge_mode == "iter_smooth_topk":
            assert probable is not None
            ids = np.column_stack((tokens, probable.tokens))
            weights = np.column_stack((np.ones(len(tokens)), self._options.token_merge_weight * probable.probabilities))
            merged = decided
        else:
            ids, weights = self._by_probability(tokens, confidence, probable)
            # A certain token's blend is its own embedding, up to rounding.
            merged = decided & (confidence < 1)
        self._parts[block] = _Part(
            positions=positions[merged], ids=ids[merged], weights=weights[merged].astype(np.float32)
        )

    def between(self, start: int, end: int, block_size: int) -> Blends | None:
        """Those of `[start, end)`; None where there are none."""
        found = []
        for block in range(start // block_size, -(-end // block_size)):
            part = self._parts.get(block)
            if part is not None and len(part.positions):
                found.append(part)
        if not found:
            return None
        positions = np.concatenate([part.positions for part in found])
        inside = (positions >= start) & (positions < end)
        return Blends(
            positions=positions[inside],
            ids=np.concatenate([part.ids for part in found])[inside],
            weights=np.concatenate([part.weights for part in found])[inside],
            match_norm=self._options.token_merge_mode == "dmax_topk" and self._options.token_merge_renormalize,
        )

    def _by_probability(
        self, tokens: IntArray, confidence: FloatArray, probable: Alternatives | None
    ) -> tuple[IntArray, FloatArray]:
        """The chosen token, the most probable others, and the mask with what is left: ids and weights, [n, k + 1]."""
        others = self._top_k - 1
        ids = np.full((len(tokens), others + 2), self._mask, dtype=np.int64)
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
