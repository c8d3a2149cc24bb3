"""The check of thresholds tells what is wrong, also where that is not a threshold."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import attrs
import pytest

from diffulex_core.config import key
from diffulex_core.errors import ConfigError
from diffulex_core.testing.check import CheckFailed
from diffulex_core.testing.checks import thresholds
from diffulex_core.testing.effort import Effort
from diffulex_core.testing.journeys import Bench, bench
from diffulex_core.testing.subjects import StrategySubject
from tests.conformance.broken_strategies import THRESHOLDS, strategy


@attrs.frozen(kw_only=True)
class Options:
    """A strategy's keys."""

    mutant_turns: bool = key(False, "Turns.")


def told(**recipe: Any) -> str:
    with pytest.raises(CheckFailed) as failed:
        thresholds.check_thresholds_change_decisions(strategy(**recipe), Effort(shrinks=False))
    return str(failed.value)


def test_a_configuration_that_is_refused_is_the_cause_and_no_threshold_is_blamed() -> None:
    said = told(forces={"max_num_batched_tokens": 1})
    assert said.startswith("no threshold could be tried. The configuration is refused: max_num_batched_tokens is 1 ")
    assert not any(name in said for name in THRESHOLDS)


def test_a_switch_that_cannot_be_turned_is_told_beside_the_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(subject: StrategySubject, **settings: Any) -> AbstractContextManager[Bench]:
        if settings:
            raise ConfigError(["mutant_turns needs more."])
        return bench(subject)

    monkeypatch.setattr(thresholds, "bench", refusing)
    said = told(thresholds=THRESHOLDS | {"edit_threshold"}, config_cls=f"{__name__}:{Options.__name__}")
    assert said.startswith("edit_threshold: ")
    assert said.endswith("The configuration with mutant_turns=True is refused: mutant_turns needs more.")
