"""Requests to try a strategy with, as hypothesis draws them."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from diffulex_core.plugin import Capability
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.testing.journeys import Ask, Bench

PROMPTS = (5, 8, 13, 1, 18, 4, 7, 16, 2, 10, 19)
LIMITS = (8, 3, 13, 5, 1, 10, 2, 12, 6)
"""Lengths of prompts and answers, telling ones first: a check that tries a few examples begins with them."""

_SAY_NOTHING_OF_LOGITS = frozenset({
    Capability.MASK_TOKEN, Capability.BLOCK_CAUSAL, Capability.FULL_PREFIX, Capability.FULL_ATTENTION, Capability.EDIT,
    Capability.SOFT_INPUTS,
})  # fmt: skip
"""A strategy that requires no more than these must heed `ReqContext.shifted`."""


def takes_any_logits(requires: Set[str]) -> bool:
    """Whether a strategy that requires this runs with families of aligned and of shifted logits."""
    return requires <= _SAY_NOTHING_OF_LOGITS


def asks(bench: Bench, **params: Any) -> SearchStrategy[Ask]:
    """Requests of every length, with aligned and, where the strategy takes them, shifted logits.

    Args:
        params: sampling parameters that all of them have.
    """
    takes_any = takes_any_logits(bench.subject.strategy.requires)
    longest = max(1, bench.context.max_model_len // 3)

    def ask(prompt_len: int, salt: int, shifted: bool, logits: int, drawn: dict[str, Any]) -> Ask:
        plain = bench.vocabulary.plain
        return Ask(
            prompt=tuple(plain[(11 * at * at + 5 * at + 17 * salt) % len(plain)] for at in range(prompt_len)),
            params=SamplingParams(**{**drawn, **params}),
            logits=logits,
            shifted=True if shifted and takes_any else None,
        )

    return st.builds(
        ask,
        prompt_len=st.sampled_from([length for length in PROMPTS if length <= longest]),
        salt=st.integers(0, 3),
        shifted=st.booleans(),
        logits=st.integers(0, 2**20),
        drawn=st.fixed_dictionaries({
            "max_tokens": st.sampled_from(LIMITS),
            "temperature": st.sampled_from((0.8, 0.0)),
            "seed": st.integers(0, 99),
            "ignore_eos": st.booleans(),
        }),
    )  # fmt: skip


def flips(count: int = 8) -> SearchStrategy[list[bool]]:
    """What happens in the steps of a request and what does not; beyond the list it is told from the start again."""
    return st.lists(st.sampled_from((True, False)), min_size=1, max_size=count)
