"""Sound implementations that share nothing with core's pass the kit, so that it asks for behaviour and not for ours."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from diffulex_core.testing.check import AnyCheck
from diffulex_core.testing.checks import attention, plugins, sampler
from diffulex_core.testing.effort import Effort
from diffulex_core.testing.subjects import AttentionSubject, PluginSubject, SamplerSubject
from tests.conformance import installed_plugin
from tests.conformance.loop_attention import LoopAttention, probe
from tests.conformance.row_sampler import RowSampler


@pytest.mark.parametrize(
    "check", [each for each in sampler.CHECKS if each.level == "required"], ids=lambda check: check.name
)
def test_a_sampler_that_goes_row_by_row_conforms(check: AnyCheck) -> None:
    subject = SamplerSubject(name="rows", factory=RowSampler)
    if check.when(subject) is None:
        check(subject, Effort())


@pytest.mark.parametrize("check", attention.CHECKS, ids=lambda check: check.name)
def test_a_backend_that_goes_row_by_row_conforms(check: AnyCheck) -> None:
    check(AttentionSubject(name="loops", factory=LoopAttention, probe=probe), Effort())


@pytest.fixture(scope="module")
def throwaway() -> Iterator[PluginSubject]:
    with installed_plugin.installed():
        yield installed_plugin.subject()


@pytest.mark.parametrize("check", plugins.CHECKS, ids=lambda check: check.name)
def test_the_plugin_that_mutants_break_is_sound(check: AnyCheck, throwaway: PluginSubject) -> None:
    assert check.when(throwaway) is None
    check(throwaway, Effort())
