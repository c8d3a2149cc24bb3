"""Accuracy against tokens per forward: curves, their areas, and the comparison of one block with several."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import attrs
from benchmarks.quality_results import Result

SETTLED_BLOCK = 4
"""Block length at which one block is compared with several."""
LEAST_BLOCKS = 8
"""Blocks that the shortest answer of the comparison must have."""
WANTED_RATIO, ALLOWED_LOSS = 1.5, 0.02
"""Several blocks are worth it from this TPF, relative to one block, with at most so much accuracy lost."""

GOOD = 0.97
"""Share of exact answers that a user would not miss more of."""

Point = tuple[float, float]
"""Tokens per forward, and accuracy."""


@attrs.frozen(kw_only=True)
class Curve:
    """What one way of decoding reaches on one task.

    Attributes:
        points: all that were measured, by TPF.
        edge: those of them that no other beats in both, by TPF; accuracy falls along it.
        area: see `area`.
        fastest: highest TPF that loses at most 2 points against the way's own best accuracy.
        good: highest TPF with an accuracy of at least `GOOD`; None = it has none.
    """

    model: str
    task: str
    way: str
    points: tuple[Point, ...]
    edge: tuple[Point, ...]
    area: float
    fastest: float
    good: float | None


@attrs.frozen(kw_only=True)
class Comparison:
    """Several blocks against one, everything else equal.

    Attributes:
        ratio: how many times the TPF of one block; `ratio_stores` with that of one block counted with its stores.
        lost: accuracy lost against one block; below 0 when several are right more often.
        ratio_as_exact: how many times the TPF of the fastest way with one block that is at least as exact, whatever its
            accept threshold; None = no such way is.
    """

    one: Result
    several: Result
    ratio: float
    ratio_stores: float
    lost: float
    ratio_as_exact: float | None

    @property
    def speedup(self) -> float | None:
        """How many times the tokens per second of one block; None = not measured."""
        one, several = self.one.speed, self.several.speed
        return None if one is None or several is None else several.median / one.median

    @property
    def met(self) -> bool:
        """Whether it is worth it."""
        # Shares of whole problems: 0.98 - 0.96 is a hair above 0.02 in floating point.
        return self.ratio >= WANTED_RATIO and self.lost <= ALLOWED_LOSS + 1e-9


def edge(points: Iterable[Point]) -> tuple[Point, ...]:
    """The points that no other point beats or equals in both TPF and accuracy, by TPF."""
    kept: list[Point] = []
    for tpf, accuracy in sorted(set(points), reverse=True):
        if not kept or accuracy > kept[-1][1]:
            kept.append((tpf, accuracy))
    return tuple(reversed(kept))


def area(points: Iterable[Point]) -> float:
    """Area under the stairs: the integral over t from 0 of the best accuracy among points of at least t TPF.

    Only what was measured counts; nothing is drawn between two points. A way that is always right has its highest TPF
    as area, and a further point never makes it smaller.
    """
    total, begin = 0.0, 0.0
    for tpf, accuracy in edge(points):
        total += (tpf - begin) * accuracy
        begin = tpf
    return total


def curves(results: Sequence[Result]) -> list[Curve]:
    """A curve for each way on each task of each model, in the order of their first points."""
    groups: dict[tuple[str, str, str], list[Point]] = {}
    for each in results:
        groups.setdefault((each.model, each.task, each.way), []).append((each.tpf, each.accuracy))
    drawn = []
    for (model, task, way), points in groups.items():
        best = max(accuracy for _, accuracy in points)
        good = [tpf for tpf, accuracy in points if accuracy >= GOOD - 1e-9]
        drawn.append(
            Curve(
                model=model,
                task=task,
                way=way,
                points=tuple(sorted(set(points))),
                edge=edge(points),
                area=area(points),
                fastest=max(tpf for tpf, accuracy in points if accuracy >= best - ALLOWED_LOSS - 1e-9),
                good=max(good, default=None),
            )
        )
    return drawn


def comparisons(results: Sequence[Result]) -> list[Comparison]:
    """Several blocks of `multi_bd` against one at block size 4, where nothing but the buffer differs."""
    able = [each for each in results if _comparable(each)]
    single = [each for each in able if each.settings["buffer_size"] == 1 and each.tpf]
    found: dict[tuple[str, str], Comparison] = {}
    for several in (each for each in able if each.settings["buffer_size"] > 1):
        alike = [one for one in single if _rest(one, "accept_threshold") == _rest(several, "accept_threshold")]
        as_exact = [one.tpf for one in alike if one.accuracy >= several.accuracy]
        for one in alike:
            if one.tpf_stores and _rest(one) == _rest(several):
                name = (one.model + one.task, repr(sorted(several.settings.items())))
                found[name] = Comparison(
                    one=one,
                    several=several,
                    ratio=several.tpf / one.tpf,
                    ratio_stores=several.tpf / one.tpf_stores,
                    lost=one.accuracy - several.accuracy,
                    ratio_as_exact=several.tpf / max(as_exact) if as_exact else None,
                )
    return list(found.values())


def _comparable(result: Result) -> bool:
    return (
        result.strategy == "multi_bd"
        and result.settings.get("block_size") == SETTLED_BLOCK
        and result.answer_tokens >= LEAST_BLOCKS * SETTLED_BLOCK
    )


def _rest(result: Result, *without: str) -> tuple[object, ...]:
    """Everything but the buffer, and but the settings that are named."""
    settings = {name: value for name, value in result.settings.items() if name not in ("buffer_size", *without)}
    return result.model, result.task, settings
