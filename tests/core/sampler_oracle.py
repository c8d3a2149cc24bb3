"""The packed sampler's rules, one row at a time in float64, and a way to ask the sampler about a few rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import attrs
import numpy as np
import torch
from numpy.typing import NDArray

from diffulex_core.pattern import Phase
from diffulex_core.sampling import PackedSampler
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.types import Decision, SamplingBatch, Span, Window

Row = Sequence[float]


@attrs.frozen(kw_only=True)
class Group:
    """Sampled positions of one block with their logits."""

    logits: Sequence[Row]
    positions: Sequence[int] | None = None
    threshold: float = 0.9
    force_one: bool = False
    greedy: bool = False


@attrs.frozen(kw_only=True)
class Asked:
    """One request's part of a sampler call."""

    groups: Sequence[Group]
    params: SamplingParams = attrs.field(factory=lambda: SamplingParams(temperature=0))
    draw: int = 0


def logits_of(asked: Sequence[Asked], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    rows = [list(row) for each in asked for group in each.groups for row in group.logits]
    return torch.tensor(rows, dtype=torch.float64).to(dtype)


def batch_of(asked: Sequence[Asked]) -> SamplingBatch:
    positions: list[int] = []
    window_of_row: list[int] = []
    group_of_row: list[int] = []
    groups = [group for each in asked for group in each.groups]
    windows = []
    for index, each in enumerate(asked):
        free = 0
        for group in each.groups:
            own = list(group.positions) if group.positions is not None else list(range(free, free + len(group.logits)))
            free = own[-1] + 1
            positions += own
            window_of_row += [index] * len(own)
            group_of_row += [next(at for at, other in enumerate(groups) if other is group)] * len(own)
        empty = np.empty(0, dtype=np.int64)
        span = Span(start=0, tokens=empty, catch_up=0, store_until=0, phase=Phase.DECODE, groups=(), advances=True)
        windows.append(
            Window(request_id=index, span=span, prompt_len=1, page_table=empty, params=each.params, draw=each.draw)
        )
    return SamplingBatch(
        positions=np.array(positions, dtype=np.int64),
        window_of_row=np.array(window_of_row, dtype=np.int64),
        group_of_row=np.array(group_of_row, dtype=np.int64),
        accept_threshold=np.array([group.threshold for group in groups], dtype=np.float64),
        force_one=np.array([group.force_one for group in groups], dtype=np.bool_),
        greedy=np.array([group.greedy for group in groups], dtype=np.bool_),
        windows=tuple(windows),
    )


def decide(
    *asked: Asked, vocab_size: int = 0, forbidden: frozenset[int] = frozenset(), dtype: torch.dtype = torch.float32
) -> list[Decision]:
    """What the packed sampler decides; `vocab_size` 0 = all columns."""
    logits = logits_of(asked, dtype)
    sampler = PackedSampler(vocab_size=vocab_size or logits.shape[1], forbidden=forbidden)
    return list(sampler.sample(logits, batch_of(asked)))


def distribution(
    row: Row, params: SamplingParams, *, vocab_size: int, forbidden: frozenset[int] = frozenset()
) -> NDArray[np.float64]:
    """[vocab_size] probabilities to draw from: bias, temperature, top-p, top-k and min-p, in this order."""
    bias: Mapping[int, float] = params.logit_bias
    scores = {
        token: row[token] + bias.get(token, 0.0)
        for token in range(vocab_size)
        if token not in forbidden and math.isfinite(row[token])
    }
    scores = {token: score / (params.temperature or 1.0) for token, score in scores.items()}
    best = max(scores.values())
    total = sum(math.exp(score - best) for score in scores.values())
    ranked = sorted(scores, key=lambda token: (-scores[token], -token))
    kept: list[int] = []
    before = 0.0
    for rank, token in enumerate(ranked):
        probability = math.exp(scores[token] - best) / total
        within_p = params.top_p >= 1 or before <= params.top_p
        within_k = params.top_k is None or rank < params.top_k
        likely = probability >= params.min_p / total
        if rank == 0 or (within_p and within_k and likely):
            kept.append(token)
        before += probability
    left = sum(math.exp(scores[token] - best) for token in kept)
    result = np.zeros(vocab_size)
    for token in kept:
        result[token] = math.exp(scores[token] - best) / left
    return result


def nearest_cut(row: Row, params: SamplingParams, *, vocab_size: int) -> float:
    """How close a limit lies to a decision: rounding in float32 may tip what is closer than about 1e-5."""
    scores = np.array(row[:vocab_size], dtype=np.float64) / (params.temperature or 1.0)
    probabilities = np.sort(np.exp(scores - scores.max()))[::-1]
    sums = np.cumsum(probabilities / probabilities.sum())
    gaps = [abs(sums - params.top_p).min() if params.top_p < 1 else 1.0]
    gaps.append(abs(probabilities - params.min_p).min() if params.min_p else 1.0)
    return float(min(gaps))


def accepted(confidence: Sequence[float], groups: Sequence[int], asked: Sequence[Group]) -> list[bool]:
    """The accept rule: strictly above the threshold, or the first of the most confident ones where one is forced."""
    result = [value > asked[group].threshold for value, group in zip(confidence, groups, strict=True)]
    for number, group in enumerate(asked):
        members = [at for at, owner in enumerate(groups) if owner == number]
        if group.force_one and not any(result[at] for at in members):
            result[max(members, key=lambda at: (confidence[at], -at))] = True
    return result
