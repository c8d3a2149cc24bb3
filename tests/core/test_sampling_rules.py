"""The accept rule and the limits on a distribution, alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from diffulex_core.sampling.accept import accept
from diffulex_core.sampling.choose import greedy
from diffulex_core.sampling.filters import restrict
from diffulex_core.sampling_params import SamplingParams
from tests.core.sampler_oracle import Group, accepted, distribution, nearest_cut

shares = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])


@given(st.lists(st.tuples(st.lists(shares, min_size=1, max_size=5), shares, st.booleans()), max_size=5))
@settings(deadline=None)
def test_a_group_accepts_what_passes_or_else_the_first_of_its_surest(
    given_groups: list[tuple[list[float], float, bool]],
) -> None:
    confidence = [value for values, _, _ in given_groups for value in values]
    owner = [number for number, (values, _, _) in enumerate(given_groups) for _ in values]
    result = accept(
        np.array(confidence, dtype=np.float32),
        np.array(owner, dtype=np.int64),
        np.array([threshold for _, threshold, _ in given_groups], dtype=np.float64),
        np.array([force for _, _, force in given_groups], dtype=np.bool_),
    )
    groups = [Group(logits=(), threshold=threshold, force_one=force) for _, threshold, force in given_groups]
    assert result.tolist() == accepted(confidence, owner, groups)
    for number, (_, _, force) in enumerate(given_groups):
        assert not force or result[np.array(owner) == number].any()


@given(
    st.lists(st.integers(-8, 8).map(lambda number: number / 2), min_size=1, max_size=10),
    st.sampled_from([1.0, 0.9, 0.57, 0.2, 1e-9]),
    st.sampled_from([1, 2, 5, 1000]),
    st.sampled_from([0.0, 0.11, 0.6, 1.0]),
)
@settings(deadline=None)
def test_what_a_limit_keeps_is_the_oracles_support_and_keeps_its_logits(
    row: list[float], top_p: float, top_k: int, min_p: float
) -> None:
    params = SamplingParams(temperature=1.0, top_p=top_p, top_k=top_k, min_p=min_p)
    if nearest_cut(row, params, vocab_size=len(row)) < 1e-5 and min_p not in (0.0, 1.0):
        return
    logits = torch.tensor([row], dtype=torch.float32)
    kept = restrict(logits, torch.tensor([top_p]), torch.tensor([top_k]), torch.tensor([min_p]))[0]
    support = distribution(row, params, vocab_size=len(row)) > 0
    assert torch.isfinite(kept).tolist() == support.tolist()
    assert torch.equal(kept[torch.from_numpy(support)], logits[0][torch.from_numpy(support)])
    assert int(greedy(kept[None])[0]) == int(greedy(logits)[0]), "the most probable token always stays"


@pytest.mark.parametrize(("top_p", "kept"), [(0.49, [False, True, False]), (0.5, [True, True, False])])
def test_tokens_that_together_have_exactly_top_p_do_not_exceed_it(top_p: float, kept: list[bool]) -> None:
    logits = torch.tensor([[3.0, 3.0, -torch.inf]])
    limited = restrict(logits, torch.tensor([top_p]), torch.tensor([3]), torch.tensor([0.0]))
    assert torch.isfinite(limited)[0].tolist() == kept


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_each_row_has_limits_of_its_own(seed: int) -> None:
    random = np.random.default_rng(seed)
    logits = torch.from_numpy(random.normal(size=(5, 11))).float()
    limits = (
        torch.tensor([1.0, 0.5, 1.0, 0.3, 1.0]),
        torch.tensor([11, 11, 2, 4, 11]),
        torch.tensor([0.0, 0.0, 0.0, 0.2, 0.5]),
    )
    together = restrict(logits, *limits)
    for row in range(5):
        alone = restrict(logits[row : row + 1], *(limit[row : row + 1] for limit in limits))
        assert torch.equal(alone[0], together[row])
    assert torch.equal(together[0], logits[0])


def test_no_limit_at_all_keeps_every_token_of_a_large_vocabulary() -> None:
    """In float32 a running sum of probabilities may exceed 1 before its last term."""
    logits = torch.randn(1, 40_000, generator=torch.Generator().manual_seed(0)) * 2
    ordered = logits.sort(dim=1, descending=True).values.softmax(dim=1)
    assert (ordered.cumsum(dim=1) - ordered).max() > 1
    kept = restrict(logits, torch.tensor([1.0]), torch.tensor([40_000]), torch.tensor([0.0]))
    assert torch.equal(kept, logits)
