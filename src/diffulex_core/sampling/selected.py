"""Which rows of a step a few facts suffice for, and which: greedy ones that only token and confidence are asked of."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diffulex_core.sampling.confidence import MEASURES, FactMeasure
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.types import BoolArray, SamplingBatch


def selectable(batch: SamplingBatch) -> BoolArray:
    """[rows] bool: rows whose token and confidence follow from facts about the untouched distribution.

    None of a batch of which anybody asks for more: questions and log probabilities are answered for all rows together.
    """
    if batch.questions is not None or any(window.params.logprobs is not None for window in batch.windows):
        return np.zeros(len(batch.positions), dtype=np.bool_)
    cold, biased, limited = (
        np.array([fits(window.params) for window in batch.windows], dtype=np.bool_)[batch.window_of_row]
        for fits in (is_cold, is_biased, is_limited)
    )
    greedy = cold | batch.greedy[batch.group_of_row]
    if batch.clean_confidence is not None:
        # The most probable token passes every limit, and confidence does not heed them.
        limited &= ~batch.clean_confidence[batch.group_of_row]
    known = np.array([kind == "prob" or isinstance(MEASURES[kind], FactMeasure) for kind in measures(batch)])
    suffices: BoolArray = greedy & ~biased & ~limited & known.astype(np.bool_)
    return suffices


def measures(batch: SamplingBatch) -> NDArray[np.str_]:
    """[rows] what each row's confidence is."""
    kinds = np.array([window.params.confidence for window in batch.windows], dtype=object)[batch.window_of_row]
    for group, measure in enumerate(batch.measure):
        if measure is not None:
            kinds[batch.group_of_row == group] = measure
    return kinds.astype(np.str_)


def needs(batch: SamplingBatch) -> tuple[bool, bool]:
    """Whether a selectable row of the batch needs the second value, and whether one needs the entropy."""
    chosen = [MEASURES[kind] for kind in set(measures(batch).tolist()) - {"prob"}]
    facts = [measure for measure in chosen if isinstance(measure, FactMeasure)]
    return any(each.needs_second for each in facts), any(each.needs_entropy for each in facts)


def is_cold(params: SamplingParams) -> bool:
    """Whether the most probable token is taken."""
    return params.temperature == 0


def is_biased(params: SamplingParams) -> bool:
    """Whether logits are changed."""
    return bool(params.logit_bias)


def is_limited(params: SamplingParams) -> bool:
    """Whether improbable tokens are left out."""
    return params.top_p < 1 or params.top_k is not None or params.min_p > 0
