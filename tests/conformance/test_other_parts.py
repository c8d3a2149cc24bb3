"""Caches and schedulers that are right in another way than the core's pass every check that is required."""

from __future__ import annotations

from typing import Any

import pytest

from diffulex_core.kv_cache import PagedKVCache
from diffulex_core.testing.check import AnyCheck
from diffulex_core.testing.checks import kv_cache, scheduler
from diffulex_core.testing.effort import Effort
from diffulex_core.testing.subjects import KVCacheSubject, MakeKVCache, MakeScheduler, SchedulerSubject
from tests.conformance.other_caches import KeepsOnePage, PlainCache, TextCache
from tests.conformance.other_schedulers import CountsFromAHundred, GivesWayAfterTheStep, OneAtATime, PlainScheduler

CACHES = (TextCache, PlainCache, KeepsOnePage)
PAIRS = (
    (PlainScheduler, PagedKVCache),
    (OneAtATime, TextCache),
    (GivesWayAfterTheStep, PlainCache),
    (CountsFromAHundred, KeepsOnePage),
)


def _cases(checks: tuple[AnyCheck, ...], makers: tuple[Any, ...]) -> list[Any]:
    """Every required check for each; the dear ones, which play histories, for the first."""
    return [
        pytest.param(make, check, id=f"{number}-{check.name}")
        for number, make in enumerate(makers)
        for check in checks
        if check.level == "required"
        and (number == 0 or ("_survives_" not in check.name and "_history" not in check.name))
    ]


@pytest.mark.parametrize(("cache", "check"), _cases(kv_cache.CHECKS, CACHES))
def test_another_cache_passes(cache: MakeKVCache, check: AnyCheck) -> None:
    check(KVCacheSubject(name="another", factory=cache), Effort())


@pytest.mark.parametrize(("pair", "check"), _cases(scheduler.CHECKS, PAIRS))
def test_another_scheduler_passes(pair: tuple[MakeScheduler, MakeKVCache], check: AnyCheck) -> None:
    make, cache = pair
    check(SchedulerSubject(name="another", factory=make, kv_cache=cache), Effort())


def test_a_cache_that_finds_what_was_stored_passes_what_is_recommended_too() -> None:
    for check in kv_cache.CHECKS:
        if check.level == "recommended":
            check(KVCacheSubject(name="another", factory=TextCache), Effort())
