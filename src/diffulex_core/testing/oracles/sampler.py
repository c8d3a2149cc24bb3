"""What a sampler should say: one row at a time, in float64, with Python's own arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from diffulex_core.sampling_params import SamplingParams
from diffulex_core.types import FloatArray

Row = Sequence[float]


@attrs.frozen(kw_only=True)
class Distribution:
    """Probabilities of the tokens that may be chosen.

    Attributes:
        share: by token; what is missing has none.
        gap: how near a limit comes to keeping other tokens; what is closer than rounding is undecided.
    """

    share: dict[int, float]
    gap: float

    @property
    def likeliest(self) -> int:
        """The most probable token, the highest id among equals."""
        return max(self.share, key=lambda token: (self.share[token], token))


def scores_of(row: Row, forbidden: frozenset[int], params: SamplingParams) -> dict[int, float]:
    """The biased logits of the tokens that may be chosen at all."""
    scores = {token: score + params.logit_bias.get(token, 0.0) for token, score in enumerate(row)}
    return {token: score for token, score in scores.items() if token not in forbidden and score > -math.inf}


def softmax(scores: dict[int, float], temperature: float = 1.0) -> dict[int, float]:
    """Probabilities of scores, by token."""
    best = max(scores.values())
    powers = {token: math.exp((score - best) / temperature) for token, score in scores.items()}
    total = math.fsum(powers.values())
    return {token: power / total for token, power in powers.items()}


def distribution(row: Row, forbidden: frozenset[int], params: SamplingParams) -> Distribution:
    """What tokens are drawn from: biased, tempered (temperature 0 tempers nothing), then limited.

    A limit keeps the most probable tokens, the higher id first among equals: top-p those before which less than it has
    been reached, top-k so many, min-p those of at least this share of the most probable one.
    """
    free = softmax(scores_of(row, forbidden, params), params.temperature or 1.0)
    ranked = sorted(free, key=lambda token: (-free[token], -token))
    kept, before, gap = list[int](), 0.0, 1.0
    for rank, token in enumerate(ranked):
        stays = params.top_k is None or rank < params.top_k
        if params.top_p < 1:
            stays &= before <= params.top_p
            gap = min(gap, abs(before - params.top_p))
        if params.min_p > 0:
            stays &= free[token] >= params.min_p * free[ranked[0]]
            gap = min(gap, abs(free[token] / free[ranked[0]] - params.min_p))
        if rank == 0 or stays:
            kept.append(token)
        elif len(kept) == rank:
            gap = min(gap, 1 - free[token] / free[kept[-1]])  # among equals anybody may stay
        before += free[token]
    left = math.fsum(free[token] for token in kept)
    return Distribution(share={token: free[token] / left for token in kept}, gap=gap)


def margin(shares: dict[int, float]) -> float:
    """The most probable token's lead over the second."""
    first, second = sorted([0.0, *shares.values()], reverse=True)[:2]
    return first - second


def entropy(shares: dict[int, float]) -> float:
    """In nats."""
    return -math.fsum(share * math.log(share) for share in shares.values() if share > 0)


def accepted(
    confidence: FloatArray, groups: Sequence[int], thresholds: Sequence[float], forced: Sequence[bool]
) -> NDArray[np.bool_]:
    """Who is accepted: strictly above its group's threshold, or the first of the most confident where one is forced.

    Args:
        confidence: [rows].
        groups: [rows] group of each row.
        thresholds, forced: of each group.
    """
    result = [float(value) > thresholds[group] for value, group in zip(confidence, groups, strict=True)]
    for group in set(groups):
        members = [row for row, owner in enumerate(groups) if owner == group]
        if forced[group] and not any(result[row] for row in members):
            result[max(members, key=lambda row: (confidence[row], -row))] = True
    return np.array(result, dtype=np.bool_)


def difference(one: object, other: object, *, tolerance: float = 1e-5) -> str | None:
    """Where two decisions differ, field by field and whatever their class; None where they agree.

    Whole numbers and flags are compared exactly, fractions with a tolerance.
    """
    if type(one) is not type(other):
        return f"is a {type(one).__name__} here and a {type(other).__name__} there"
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        close = one.shape == other.shape and (
            np.allclose(one, other, rtol=tolerance, atol=tolerance, equal_nan=True)
            if np.issubdtype(one.dtype, np.floating)
            else np.array_equal(one, other)
        )
        return None if close else f"is {_text(one)} here and {_text(other)} there"
    if isinstance(one, tuple) and isinstance(other, tuple):
        parts = [(f"[{index}]", *both) for index, both in enumerate(zip(one, other, strict=False))]
        told = None if len(one) == len(other) else f"has {len(one)} parts here and {len(other)} there"
    elif attrs.has(type(one)):
        fields, others = _fields(one), _fields(other)
        parts, told = [(name, value, others[name]) for name, value in fields.items()], None
    else:
        parts, told = [], None if one == other else f"is {one} here and {other} there"
    for name, here, there in parts:
        if told is None and (found := difference(here, there, tolerance=tolerance)) is not None:
            told = f"{name} {found}"
    return told


def _fields(instance: Any) -> dict[str, Any]:
    return attrs.asdict(instance, recurse=False)


def _text(values: NDArray[np.generic]) -> str:
    return np.array2string(values, threshold=12, precision=5, separator=", ")
