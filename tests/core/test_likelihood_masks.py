"""Maskings of a Monte-Carlo estimate: even, unbiased, and a function of the seed."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from diffulex_core.evaluation.masks import draw_masks, masked_counts, seed_for

lengths, batches = st.integers(1, 40), st.integers(1, 33)


@given(length=lengths, batch=batches, data=st.data())
def test_a_batch_spreads_its_counts_evenly(length: int, batch: int, data: st.DataObject) -> None:
    counts = masked_counts(length, data.draw(st.integers(1, length)), batch)
    assert counts.min() >= 1
    assert counts.max() <= length
    around = (counts - counts[0]) % length
    steps = np.diff([*around, *([length] if batch <= length else [])])
    assert (steps % length).max(initial=0) <= -(-length // batch)
    if batch % length == 0:
        assert set(Counter(counts.tolist()).values()) == {batch // length}


@given(length=lengths, batch=batches)
def test_every_count_is_as_likely_as_any_other_in_every_place_of_a_batch(length: int, batch: int) -> None:
    everything = np.stack([masked_counts(length, first, batch) for first in range(1, length + 1)])
    assert (np.sort(everything, axis=0) == np.arange(1, length + 1)[:, None]).all()


@settings(max_examples=50)
@given(length=st.integers(1, 12), draws=st.integers(1, 40), batch=batches, seed=st.integers(0, 2**63 - 1))
def test_maskings_are_different_hide_something_and_stand_for_all_draws(
    length: int, draws: int, batch: int, seed: int
) -> None:
    masks = draw_masks(length, draws=draws, batch=batch, seed=seed)
    assert masks.hidden.shape == (len(masks), length)
    assert len({row.tobytes() for row in masks.hidden}) == len(masks) <= draws
    assert masks.hidden.any(axis=1).all()
    assert masks.share * draws == pytest.approx(np.rint(masks.share * draws))
    assert masks.share.sum() == pytest.approx(1)
    again = draw_masks(length, draws=draws, batch=batch, seed=seed)
    assert (again.hidden == masks.hidden).all()
    assert (again.share == masks.share).all()


def test_rounding_to_the_nearest_number_would_prefer_some_counts() -> None:
    def rounded(first: int) -> np.typing.NDArray[np.float64]:
        return (np.rint(first + np.arange(16) * 8 / 16) - 1) % 8 + 1

    published = Counter(np.concatenate([rounded(first) for first in range(1, 9)]).tolist())
    ours = Counter(np.concatenate([masked_counts(8, first, 16) for first in range(1, 9)]).tolist())
    assert published == {count: 24 if count % 2 == 0 else 8 for count in range(1, 9)}
    assert ours == dict.fromkeys(range(1, 9), 16)


def test_a_single_token_has_a_single_masking() -> None:
    masks = draw_masks(1, draws=128, batch=16, seed=3)
    assert masks.hidden.tolist() == [[True]]
    assert masks.share.tolist() == [1.0]


def test_all_maskings_of_a_size_are_equally_likely_and_so_are_all_sizes() -> None:
    length, draws = 4, 60_000
    masks = draw_masks(length, draws=draws, batch=7, seed=11)
    found = dict(zip(map(tuple, masks.hidden.astype(int).tolist()), masks.share.tolist(), strict=True))
    assert len(found) == 2**length - 1
    chances = {key: 1 / length / [4, 6, 4, 1][sum(key) - 1] for key in found}
    distance = sum((found[key] - chance) ** 2 / chance for key, chance in chances.items()) * draws
    assert distance < 36.1  # chi squared of 14 degrees of freedom, one in a thousand; the even spread keeps it smaller


def test_answers_to_one_question_share_their_draws_and_questions_do_not() -> None:
    context = np.array([1, 2, 3])
    assert seed_for(0, context) == seed_for(0, context.copy())
    assert len({seed_for(0, context), seed_for(1, context), seed_for(0, context[:2]), seed_for(0, context[:0])}) == 4
