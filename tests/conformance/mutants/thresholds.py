"""Broken subjects for the checks of `diffulex_core.testing.checks.thresholds`."""

from __future__ import annotations

from functools import partial

from diffulex_core.testing.checks.thresholds import check_thresholds_change_decisions
from tests.conformance import broken_thresholds as broken
from tests.conformance.broken_strategies import THRESHOLDS, strategy
from tests.conformance.mutant import Mutant

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        name="declares a threshold that nobody reads",
        check=check_thresholds_change_decisions,
        subject=partial(strategy, thresholds=THRESHOLDS | {"edit_threshold"}),
    ),
    Mutant(
        name="requests accept at a number of their own",
        check=check_thresholds_change_decisions,
        subject=partial(strategy, req=f"broken_thresholds:{broken.AcceptsAtItsOwn.__name__}"),
    ),
    Mutant(
        name="a request's thresholds are not heeded",
        check=check_thresholds_change_decisions,
        subject=partial(strategy, req=f"broken_thresholds:{broken.IgnoresItsThresholds.__name__}"),
    ),
)
