"""Decisions of several requests, one after another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from diffulex_core.pattern import IntArray
from diffulex_core.types import Decision, Spans


class Named(Protocol):
    """A request, as far as errors need it."""

    @property
    def request_id(self) -> int: ...


def answered(requests: Sequence[Named], spans: Spans, decisions: Sequence[Decision]) -> IntArray:
    """[n] the positions that were decided, span by span.

    Raises:
        ValueError: they are not the ones that the spans asked for; naming the requests.
    """
    given = [decision.positions for decision in decisions]
    positions = np.concatenate(given)
    if [*map(len, given)] != [*spans.asked] or (positions != spans.groups.positions).any():
        wrong = [
            request.request_id
            for request, span, own in zip(requests, spans, given, strict=True)
            if not np.array_equal(span.groups.positions, own)
        ]
        raise ValueError(f"requests {wrong}: the decision does not answer the span's groups")
    return positions


def starts_of(sizes: IntArray) -> IntArray:
    """[n] where each of n runs of these sizes begins."""
    starts: IntArray = np.cumsum(sizes) - sizes
    return starts
