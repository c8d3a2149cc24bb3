"""The sparse cache's parts: which pass a step is, what is kept, and what a configuration may say."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from diffulex_core.distributed import ALONE, Communicator
from diffulex_core.distributed.ranges import even_range, kv_head_range
from diffulex_core.errors import InvalidSamplingParams
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.sparse import SparseConfig
from diffulex_core.sparse.phases import CachePhase, phase
from diffulex_core.sparse.policy import SparseRefresh
from diffulex_core.testing.thread_group import together
from diffulex_core.types import KVGeometry, Refresh

FULL, REFRESH, REUSE = CachePhase


def phases(
    config: SparseConfig, steps: int, drifts: list[float] | None = None, *, known: bool = True
) -> list[CachePhase]:
    """The phases of a block of so many steps; `drifts` says how much of it has changed since the last refresh."""
    found: list[CachePhase] = []
    since: int | None = None
    for step in range(steps):
        drift = 0.0 if drifts is None else drifts[step]
        found.append(phase(config, step=step, since=since, drift=drift, last=known and step == steps - 1))
        since = 1 if found[-1] is REFRESH else None if since is None or found[-1] is FULL else since + 1
    return found


configs = st.builds(
    SparseConfig,
    delay_step=st.integers(0, 6),
    refresh_every=st.none() | st.integers(1, 5),
    refresh_drift=st.none() | st.sampled_from([0.2, 0.5, 1.0]),
)


@given(config=configs, steps=st.integers(1, 20), drifts=st.lists(st.floats(0, 1), min_size=20, max_size=20))
def test_a_block_begins_with_its_delay_then_stores_and_reads_nothing_older_than_was_asked_for(
    config: SparseConfig, steps: int, drifts: list[float]
) -> None:
    for known in (True, False):
        found = phases(config, steps, drifts, known=known)
        assert found[: config.delay_step] == [FULL] * min(steps, config.delay_step)
        age = None
        for step, kind in enumerate(found):
            if kind is REUSE:
                assert age is not None, "there is nothing to read"
                age += 1
                assert config.refresh_every is None or age < config.refresh_every
                assert config.refresh_drift is None or drifts[step] < config.refresh_drift
            elif step >= config.delay_step:
                nobody_reads = (known and step == steps - 1) or config.refresh_every == 1
                assert kind is (FULL if nobody_reads else REFRESH)
                due = age is None or age + 1 == config.refresh_every
                assert due or (config.refresh_drift is not None and drifts[step] >= config.refresh_drift)
                age = None if kind is FULL else 0


@pytest.mark.parametrize(
    ("settings", "steps", "expected"),
    [
        ({}, 5, [FULL, REFRESH, REUSE, REUSE, REUSE]),
        ({"delay_step": 0}, 3, [REFRESH, REUSE, REUSE]),
        ({"delay_step": 3}, 6, [FULL, FULL, FULL, REFRESH, REUSE, REUSE]),
        ({"delay_step": 3}, 4, [FULL, FULL, FULL, FULL]),
        ({"delay_step": 3}, 2, [FULL, FULL]),
        ({"delay_step": 0}, 1, [FULL]),
        ({"refresh_every": 1}, 4, [FULL, FULL, FULL, FULL]),
        ({"refresh_every": 2}, 6, [FULL, REFRESH, REUSE, REFRESH, REUSE, FULL]),
        ({"refresh_every": 3, "delay_step": 0}, 5, [REFRESH, REUSE, REUSE, REFRESH, REUSE]),
    ],
)
def test_examples_of_blocks(settings: dict[str, Any], steps: int, expected: list[CachePhase]) -> None:
    assert phases(SparseConfig(**settings), steps) == expected


def test_drift_renews_what_is_kept_once_enough_has_changed() -> None:
    drifts = [0.0, 0.0, 0.25, 0.5, 0.25, 0.5, 0.75]
    found = phases(SparseConfig(refresh_drift=0.5, delay_step=0), 7, drifts)
    assert found == [REFRESH, REUSE, REUSE, REFRESH, REUSE, REFRESH, FULL]


@pytest.mark.parametrize(
    ("ratio", "outside", "kept"),
    [(0.5, 7, 3), (0.29, 100, 29), (0.7, 10, 7), (0.01, 30, 1), (1.0, 30, 30), (0.3, 1, 1), (np.float32(0.5), 8, 4)],
)
def test_the_share_that_is_kept_is_rounded_down_to_one_at_least(ratio: float, outside: int, kept: int) -> None:
    assert SparseConfig(retention_ratio=ratio).kept_of(outside) == kept


def test_a_configuration_that_is_passed_is_on_and_says_what_is_wrong_with_it() -> None:
    config = SparseConfig(retention_ratio=0.3)
    assert config.enabled
    assert SamplingParams(sparse=config) == SamplingParams(sparse={"retention_ratio": 0.3})
    with pytest.raises(InvalidSamplingParams, match="sparse holds 'ratio'; the fields are enabled, retention_ratio"):
        SamplingParams(sparse={"ratio": 0.3})
    with pytest.raises(InvalidSamplingParams, match=r"sparse: retention_ratio is 0;.*sparse: pool_kernel is 2"):
        SamplingParams(sparse=SparseConfig(retention_ratio=0, pool_kernel=2))
    with pytest.raises(InvalidSamplingParams, match="delay_step is 8, but must be less than default_block_len, 8"):
        SamplingParams(sparse=SparseConfig(delay_step=8, default_block_len=8))


HEAD = 8


def random_heads(rows: int, heads: int, kv_heads: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, heads, HEAD, generator=generator), torch.randn(rows, kv_heads, HEAD, generator=generator)


def policy(heads: int, kv_heads: int, tp: Communicator = ALONE, copies: int = 1) -> SparseRefresh:
    geometry = KVGeometry(num_heads=heads, num_kv_heads=kv_heads, head_dim=HEAD, copies=copies)
    return SparseRefresh(geometry=(geometry,), tp=tp)


def scored(scores: list[float], start: int, end: int) -> tuple[Tensor, Tensor]:
    """q and k of one head such that the tokens outside `[start, end)` have these scores."""
    rows = len(scores) + end - start
    query, key = torch.zeros(rows, 1, HEAD), torch.zeros(rows, 1, HEAD)
    query[start:end, 0, 0] = HEAD**0.5
    key[[at for at in range(rows) if not start <= at < end], 0, 0] = torch.tensor(scores)
    return query, key


@pytest.mark.parametrize(
    ("scores", "keep", "pool", "kept"),
    [
        ([1.0, 5.0, 2.0, 4.0, 3.0], 2, 1, [1, 5]),
        ([1.0, 5.0, 2.0, 4.0, 3.0], 3, 3, [0, 1, 4]),
        ([0.0, 0.0, 9.0, 0.0, 0.0], 3, 3, [1, 4, 5]),
        ([0.0, 9.0, 0.0, 0.0, 0.0], 3, 3, [0, 1, 4]),
        ([7.0, 7.0, 7.0, 7.0, 7.0], 2, 1, [0, 1]),
        ([-3.0, -1.0, -2.0, -9.0, -8.0], 4, 5, [0, 1, 4, 5]),
        ([1.0, 2.0, 3.0, 4.0, 5.0], 5, 3, [0, 1, 4, 5, 6]),
    ],
    ids=["best", "neighbours", "neighbours across the block", "and before it", "first of equals", "negative", "all"],
)
def test_tokens_are_kept_by_the_best_score_around_them(
    scores: list[float], keep: int, pool: int, kept: list[int]
) -> None:
    """The block is `[2, 4)`, so the scores are those of tokens 0, 1, 4, 5 and 6."""
    refresh = Refresh(start=2, end=4, keep=keep, per_head=False, pool=pool)
    assert policy(1, 1).keep(0, *scored(scores, 2, 4), refresh).tolist() == [kept]


def test_heads_choose_together_or_each_for_itself() -> None:
    query, key = random_heads(20, 6, 3)
    shared = policy(6, 3).keep(0, query, key, Refresh(start=5, end=9, keep=6, per_head=False, pool=1))
    own = policy(6, 3).keep(0, query, key, Refresh(start=5, end=9, keep=6, per_head=True, pool=1))
    assert shared.shape == own.shape == (3, 6)
    assert len({tuple(line) for line in shared.tolist()}) == 1
    assert len({tuple(line) for line in own.tolist()}) == 3
    for line in (*shared.tolist(), *own.tolist()):
        assert line == sorted(set(line) - {5, 6, 7, 8})


@given(
    rows=st.integers(2, 30),
    region=st.tuples(st.integers(1, 29), st.integers(1, 30)),
    ratio=st.sampled_from([0.1, 0.5, 1.0]),
    per_head=st.booleans(),
    pool=st.sampled_from([1, 3, 9]),
)
def test_what_is_kept_lies_outside_ascends_and_is_as_much_as_was_asked_for(
    rows: int, region: tuple[int, int], ratio: float, per_head: bool, pool: int
) -> None:
    start = min(region[0], rows - 1)
    end = min(start + region[1], rows)
    keep = SparseConfig(retention_ratio=ratio).kept_of(rows - (end - start))
    kept = policy(4, 2).keep(
        0, *random_heads(rows, 4, 2), Refresh(start=start, end=end, keep=keep, per_head=per_head, pool=pool)
    )
    assert kept.shape == (2, keep)
    for line in kept.tolist():
        assert line == sorted(set(line) - set(range(start, end)))
        assert ratio < 1 or line == [at for at in range(rows) if not start <= at < end]


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(4, 4, 2), (4, 2, 2), (8, 2, 4), (8, 2, 8), (8, 1, 4)])
def test_processes_that_share_a_layer_keep_what_one_process_keeps(
    heads: int, kv_heads: int, size: int, per_head: bool
) -> None:
    query, key = random_heads(40, heads, kv_heads, seed=heads + size)
    refresh = Refresh(start=11, end=17, keep=9, per_head=per_head, pool=3)
    whole = policy(heads, kv_heads).keep(0, query, key, refresh)

    def share(tp: Communicator) -> bool:
        mine, theirs = even_range(heads, tp, "heads"), kv_head_range(heads, kv_heads, tp)
        q = query[:, mine.start : mine.start + mine.length]
        k = key[:, theirs.start : theirs.start + theirs.length]
        own = policy(mine.length, theirs.length, tp, copies=max(1, size // kv_heads))
        kept = own.keep(0, q, k, refresh)
        return torch.equal(kept, whole[theirs.start : theirs.start + theirs.length])

    assert together(size, share) == [True] * size


def test_scores_are_computed_in_float32_whatever_the_activations_are() -> None:
    query, key = (x.bfloat16() for x in random_heads(60, 4, 2, seed=5))
    refresh = Refresh(start=20, end=30, keep=25, per_head=True, pool=1)
    assert torch.equal(
        policy(4, 2).keep(0, query, key, refresh), policy(4, 2).keep(0, query.float(), key.float(), refresh)
    )


def test_the_mean_query_is_not_rounded_to_the_activations() -> None:
    """Its two numbers are 1 and 1 + 2**-8, which bfloat16 does not tell apart."""
    query, key = torch.zeros(4, 1, HEAD, dtype=torch.bfloat16), torch.zeros(4, 1, HEAD, dtype=torch.bfloat16)
    query[2:, 0, :2] = torch.tensor([[1, 1], [1, 1 + 2**-7]])
    key[0, 0, 0] = key[1, 0, 1] = 1
    refresh = Refresh(start=2, end=4, keep=1, per_head=False, pool=1)
    assert policy(1, 1).keep(0, query, key, refresh).tolist() == [[1]]


def test_configurations_are_frozen_values() -> None:
    assert SparseConfig() == SparseConfig(enabled=True, delay_step=np.int64(1), default_block_len=32)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        SparseConfig().pool_kernel = 5  # type: ignore[misc]
