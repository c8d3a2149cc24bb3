"""Taking turns: every contender once in each round, and what the rounds say together."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

import attrs

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Runs(Protocol[T_co]):
    """What takes turns."""

    @property
    def name(self) -> str: ...

    def run(self) -> T_co: ...


@attrs.frozen(kw_only=True)
class Spread:
    """Median, lowest and highest of some numbers."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """
        Raises:
            ValueError: there are none.
        """
        if not values:
            raise ValueError("no values")
        return cls(median=statistics.median(values), low=min(values), high=max(values))


def take_turns(
    contenders: Sequence[Runs[T]], *, rounds: int, warmups: int, seconds: float, now: Callable[[], float]
) -> Mapping[str, list[T]]:
    """Run all contenders `rounds` times.

    Odd rounds go backwards, so that nobody always runs behind the same other one. Warm-up rounds are not kept.

    Args:
        seconds: begin no round after so many, once there is one.
        now: a clock.
    """
    kept: dict[str, list[T]] = {each.name: [] for each in contenders}
    began = now()
    for index in range(-warmups, rounds):
        if index > 0 and now() - began > seconds:
            break
        for each in contenders if index % 2 == 0 else reversed(contenders):
            found = each.run()
            if index >= 0:
                kept[each.name].append(found)
    return kept


def ratios(slow: Sequence[float], fast: Sequence[float]) -> Spread:
    """How many times faster the second is, round by round."""
    return Spread.of([one / other for one, other in zip(slow, fast, strict=True)])


class DifferentTokens(AssertionError):
    """Contenders that run the same algorithm on the same weights gave different answers."""


def agreement(answers: Mapping[str, Sequence[Sequence[int]]]) -> float:
    """Share of positions at which all answers hold the same token.

    Raises:
        DifferentTokens: they differ in length, so that they did not do the same work.
    """
    (first, wanted), *others = answers.items()
    total = sum(map(len, wanted))
    same = [[True] * len(row) for row in wanted]
    for name, rows in others:
        if [*map(len, rows)] != [*map(len, wanted)]:
            raise DifferentTokens(f"{name} gave {[*map(len, rows)]} tokens, {first} gave {[*map(len, wanted)]}.")
        for marks, row, expected in zip(same, rows, wanted, strict=True):
            for at, (token, other) in enumerate(zip(row, expected, strict=True)):
                marks[at] = marks[at] and token == other
    return sum(map(sum, same)) / total if total else 1.0


def check_same(answers: Mapping[str, Sequence[Sequence[int]]]) -> None:
    """Refuse answers that are not equal token for token.

    Raises:
        DifferentTokens: naming the contenders and the share of positions that agree.
    """
    share = agreement(answers)
    if share < 1:
        raise DifferentTokens(f"{' and '.join(answers)} agree at {share:.2%} of all positions, not at all of them.")
