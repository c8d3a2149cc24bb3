"""A check of thresholds: each one that a strategy declares changes what its requests decide."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from typing import Any, Literal, get_args, get_origin

import attrs
from hypothesis import strategies as st

from diffulex_core.errors import ConfigError
from diffulex_core.testing.asks import asks
from diffulex_core.testing.check import AnyCheck, CheckFailed, check
from diffulex_core.testing.effort import Effort
from diffulex_core.testing.journeys import MOST_STEPS, Ask, Bench, bench, visible
from diffulex_core.testing.subjects import StrategySubject

VALUES = (0.0, 1.0, 0.5)
"""What a threshold is set to, telling ones first."""
SHARE = 0.4
"""Of the usual number of examples."""


def _has_none(subject: StrategySubject) -> str | None:
    return None if subject.strategy.thresholds else "it declares no thresholds"


@check(StrategySubject, when=_has_none, level="recommended")
def check_thresholds_change_decisions(subject: StrategySubject, effort: Effort) -> None:
    """Each threshold that the strategy declares changes what is decided, or when, for some request.

    Why: users turn what the configuration offers. One that nobody reads looks as if it had been turned.
    Fix: read `ReqContext.thresholds`, with the request's own (`SamplingParams.resolve_thresholds`); list in
    `thresholds` what is read, and in a mode's `ignores` what is not read there. One that is read only where a key of
    the strategy says so is found where that key is a switch or a choice.
    """
    idle, tried, refused = set(subject.strategy.thresholds), 0, list[str]()
    for settings in _settings(subject):
        try:
            with bench(subject, **settings) as made:
                idle -= _felt(made, effort, idle)
            tried += 1
        except ConfigError as error:
            turned = " with " + ", ".join(f"{name}={value!r}" for name, value in settings.items()) if settings else ""
            refused.append(f"The configuration{turned} is refused: {' '.join(error.problems)}")
        if not idle:
            return
    if not tried:
        raise CheckFailed(f"no threshold could be tried. {' '.join(refused)}")
    told = (
        f"{', '.join(sorted(idle))}: {VALUES[0]:g}, {VALUES[1]:g} and values between them decide the same in the same "
        f"steps, for all of {effort.examples(SHARE)} requests, whichever of the strategy's own keys is turned."
    )
    raise CheckFailed(" ".join((told, *refused)))


def _settings(subject: StrategySubject) -> Iterator[dict[str, Any]]:
    """The strategy as it is, and with each of its own switches and choices turned."""
    yield {}
    if subject.strategy.config_cls is None:
        return
    cls = attrs.resolve_types(subject.load(subject.strategy.config_cls))
    for field in attrs.fields(cls):
        choices = (
            (False, True) if field.type is bool else get_args(field.type) if get_origin(field.type) is Literal else ()
        )
        yield from ({field.name: value} for value in choices if value != field.default)


def _felt(made: Bench, effort: Effort, names: Set[str]) -> set[str]:
    """Those of some thresholds that matter to some request."""
    found = set[str]()

    others = {name: st.sampled_from(VALUES) for name in sorted(made.subject.strategy.thresholds)}

    @effort.for_all(SHARE, ask=asks(made, max_tokens=12), others=st.fixed_dictionaries({}, optional=others))
    def collect(ask: Ask, others: dict[str, float]) -> None:
        found.update(name for name in sorted(names - found) if _matters(made, ask, name, others))

    return found


def _matters(made: Bench, ask: Ask, name: str, others: Mapping[str, float]) -> bool:
    first = _course(made, ask, {**others, name: VALUES[0]})
    return any(_course(made, ask, {**others, name: value}) != first for value in VALUES[1:])


def _course(made: Bench, ask: Ask, thresholds: Mapping[str, float]) -> list[object]:
    """All that a request shows after each of its steps."""
    journey = made.journey(attrs.evolve(ask, params=attrs.evolve(ask.params, thresholds=thresholds)))
    seen = list[object]()
    while journey.request.completion is None and journey.steps < MOST_STEPS:
        journey.advance()
        seen.append(visible(journey.request))
    return seen


CHECKS: tuple[AnyCheck, ...] = (check_thresholds_change_decisions,)
