"""Which rows of a step a few facts suffice for: those that take one of the few most probable tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffulex_core.sampling.confidence import MEASURES, FactMeasure
from diffulex_core.sampling.facts import MOST_TOP
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.types import BoolArray, SamplingBatch

KNOWN = frozenset({"prob", *(name for name, measure in MEASURES.items() if isinstance(measure, FactMeasure))})
"""Measures that facts suffice for."""


@attrs.frozen(kw_only=True, eq=False)
class Ways:
    """How rows are decided without their logits; [rows] bool each.

    Attributes:
        plain: token and confidence are those of the untouched distribution's most probable token.
        narrow: the token is one of the few most probable ones, which temperature and limits see alone.
        clean: confidence is the untouched distribution's all the same.
    """

    plain: BoolArray
    narrow: BoolArray
    clean: BoolArray


def ways(batch: SamplingBatch) -> Ways:
    """What suffices for each row. A row that is neither plain nor narrow needs its logits."""
    cold, biased, limited, narrowed = (
        np.array([fits(params) for params in batch.params], dtype=np.bool_)[batch.window_of_row]
        for fits in (is_cold, is_biased, is_limited, is_narrowed)
    )
    clean = np.zeros(len(batch.positions), dtype=np.bool_)
    if batch.clean_confidence is not None:
        clean = batch.clean_confidence[batch.group_of_row]
    greedy = cold | batch.greedy[batch.group_of_row]
    known = _by_row(batch, [params.confidence in KNOWN for params in batch.params], lambda kind: kind in KNOWN)
    # The most probable token passes every limit, and clean confidence does not heed them.
    plain = greedy & (~limited | clean) & known & ~biased
    narrow = narrowed & ~plain & (known | ~clean) & ~biased
    return Ways(plain=plain, narrow=narrow, clean=clean)


def selectable(batch: SamplingBatch) -> BoolArray:
    """[rows] bool: rows that need no logits, neither to be decided nor for what is asked of them besides."""
    found = ways(batch)
    suffices: BoolArray = found.plain | found.narrow
    questions = batch.questions
    if questions is None:
        return suffices
    if questions.most > MOST_TOP:
        return np.zeros_like(suffices)
    if questions.raw is not None:
        # The most probable tokens of the network's own distribution may be excluded from this one.
        suffices &= ~questions.raw | np.bool_(questions.most == 0) & (questions.penalty >= 0)
    return suffices


def measures(batch: SamplingBatch) -> NDArray[np.str_]:
    """[rows] what each row's confidence is."""
    of_windows, of_groups = [params.confidence for params in batch.params], filter(None, batch.measure)
    kinds = np.array([*of_windows, *of_groups], dtype=np.str_)  # those of groups, too, as a dtype holds the longest
    return _by_row(batch, kinds[: len(of_windows)], lambda kind: kind)


def _by_row(batch: SamplingBatch, of_window: ArrayLike, of_group: Callable[[str], object]) -> NDArray[Any]:
    """[rows] what is said of each row's window, or of the measure of its group where that has one."""
    found: NDArray[Any] = np.asarray(of_window)[batch.window_of_row]
    for group, measure in enumerate(batch.measure):
        if measure is not None:
            found[batch.group_of_row == group] = of_group(measure)
    return found


def needs(batch: SamplingBatch) -> tuple[bool, bool]:
    """Whether a row of the batch's windows may need the second value, and whether one may need the entropy."""
    asked = {*(params.confidence for params in batch.params), *(each for each in batch.measure if each is not None)}
    chosen = [MEASURES[kind] for kind in asked - {"prob"}]
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


def is_narrowed(params: SamplingParams) -> bool:
    """Whether few tokens are left in, whatever their probabilities."""
    return params.top_k is not None and params.top_k <= MOST_TOP and params.top_p >= 1
