"""Plugins that are right pass, however unlike the first-party ones they are."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import attrs
import pytest

from diffulex_core.testing.checks import engine, requests
from diffulex_core.testing.effort import Effort
from tests.conformance.broken_strategies import HERE, engine as engine_of, kit_family, strategy

FAMILIES = f"{HERE}unusual_families:"
UNUSUAL = attrs.evolve(kit_family(), name="unusual", architectures=("UnusualForMaskedLM",))
CASES: Mapping[str, Mapping[str, Any]] = MappingProxyType({
    "one block as large as a page, shifted logits, no end of text": {
        "forces": {"block_size": 32, "page_size": 32},
        "family": attrs.evolve(UNUSUAL, tiny=f"{FAMILIES}NO_END", logits="shifted"),
    },
    "blocks of one token, one at a time, names of its own": {
        "sizes": (1,),
        "forces": {"block_size": 1, "buffer_size": 1},
        "family": attrs.evolve(UNUSUAL, tiny=f"{FAMILIES}OWN_NAMES", build=f"{FAMILIES}by_own_names"),
    },
})  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_an_unusual_strategy_passes_the_checks_of_requests(case: str) -> None:
    subject = strategy(**CASES[case])
    for check in requests.CHECKS:
        if check.when(subject) is None:
            check(subject, Effort())


@pytest.mark.parametrize("case", CASES)
def test_an_unusual_engine_passes_the_checks_of_engines(case: str) -> None:
    subject = engine_of(**CASES[case])
    for check in engine.CHECKS:
        if check.when(subject) is None:
            check(subject, Effort())
