"""Which parts of an answer are hidden in the draws of a Monte-Carlo estimate: pure functions of a seed."""

from __future__ import annotations

import hashlib

import attrs
import numpy as np

from diffulex_core.pattern import IntArray
from diffulex_core.sampling.rng import uniform
from diffulex_core.types import BoolArray

_SEED_BITS = 2**63 - 1


@attrs.frozen(kw_only=True, eq=False)
class Masks:
    """The different maskings among all draws; equal ones need one forward only.

    Attributes:
        hidden: [n, length] bool, positions of the answer that are masked, at least one in each row.
        share: [n] float64, the share of the draws that each masking has; sums to 1.
    """

    hidden: BoolArray
    share: np.typing.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.hidden)


def masked_counts(length: int, first: int, batch: int) -> IntArray:
    """[batch] masked positions of each draw of a batch: spread evenly over 1 to `length` from `first` on, wrapping.

    Rounded down, so that each of them is uniform where `first` is; rounding halves to even numbers, as published code
    does, prefers some counts in short answers.
    """
    return (first - 1 + np.arange(batch) * length // batch) % length + 1


def draw_masks(length: int, *, draws: int, batch: int, seed: int) -> Masks:
    """Maskings of an answer of `length` tokens: first how many positions, then which, both uniform.

    Args:
        draws: of the estimate; of a single token one is enough, as there is one masking.
        batch: so many draws share an even spread of masked counts; the last batch may be smaller.
        seed: equal seeds give equal masks.
    """
    batches = -(-draws // batch)
    firsts = 1 + (_uniform(seed, np.zeros(batches, np.int64), np.arange(batches)) * length).astype(np.int64)
    counts = np.concatenate(
        [masked_counts(length, first, min(batch, draws - at * batch)) for at, first in enumerate(firsts.tolist())]
    )
    places = np.tile(np.arange(length), draws)
    order = _uniform(seed, np.repeat(np.arange(1, draws + 1), length), places).reshape(draws, length).argsort(axis=1)
    hidden = order.argsort(axis=1) < counts[:, None]
    hidden, times = np.unique(hidden, axis=0, return_counts=True)
    return Masks(hidden=hidden, share=times / draws)


def seed_for(seed: int, context: IntArray) -> int:
    """The seed of a question: the same for all answers to it, so that their comparison does not hang on the draws."""
    text = f"{seed}:".encode() + context.astype("<i8").tobytes()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) & _SEED_BITS


def _uniform(seed: int, draws: IntArray, positions: IntArray) -> np.typing.NDArray[np.float64]:
    return uniform(np.full(len(draws), seed, dtype=np.int64), draws, positions)
