"""The kit's test classes: a test for each check, one fixture to override, and nothing to take away."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from diffulex_core.plugin import DecodingStrategy, ModelFamily, PluginError
from diffulex_core.testing import bases
from diffulex_core.testing.bases import Conformance, KVCacheConformance, SamplerConformance
from diffulex_core.testing.catalogue import CHECKS
from diffulex_core.testing.described import (
    EngineConformance,
    FamilyConformance,
    PluginConformance,
    RequestConformance,
    family_of,
    host_with,
)
from diffulex_core.testing.subjects import KVCacheSubject
from tests.conformance import toy_checks

pytest_plugins = ["pytester"]

TOY = """
import pytest
from diffulex_core.kv_cache import PagedKVCache
from diffulex_core.testing.bases import Conformance
from diffulex_core.testing.subjects import KVCacheSubject

class Toy(Conformance, subject=KVCacheSubject):
    @pytest.fixture
    def kv_cache_factory(self):
        self.says_nothing("kv_cache_factory")

    @pytest.fixture
    def subject(self, kv_cache_factory):
        return KVCacheSubject(name="mine", factory=kv_cache_factory)

class TestMine(Toy):
    {body}
"""
FACTORY = "kv_cache_factory = pytest.fixture(lambda self: PagedKVCache)"

Run = Callable[..., pytest.RunResult]


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a class that inherits the toy checks."""
    monkeypatch.setattr(bases, "CHECKS", toy_checks.CHECKS)

    def run(*lines: str, options: tuple[str, ...] = (), after: str = "") -> pytest.RunResult:
        pytester.makepyfile(TOY.format(body="\n    ".join(lines)) + after)
        return pytester.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:xdist", "-v", "-rsx", *options)

    return run


def test_a_class_has_a_test_for_each_check(run: Run) -> None:
    result = run(FACTORY)
    # One of its own stands guard over the others.
    result.assert_outcomes(passed=3, failed=1, skipped=2, warnings=1)
    result.stdout.fnmatch_lines([
        "*TestMine::test_holds PASSED*",
        "*TestMine::test_breaks FAILED*",
        "*CheckFailed: kv_cache mine is broken*",
        "*it is not nice*",
        "*SKIPPED*it runs in the tier full*",
        "*SKIPPED*mine is too small*",
    ], consecutive=False)  # fmt: skip
    run(FACTORY, options=("--diffulex-tier", "full")).assert_outcomes(passed=4, failed=1, skipped=1, warnings=1)


def test_declared_failures_are_strict(run: Run) -> None:
    run(FACTORY, 'expected_failures = {"check_breaks": "not yet"}').assert_outcomes(
        passed=3, xfailed=1, skipped=2, warnings=1
    )
    result = run(FACTORY, 'expected_failures = {"check_holds": "it used to"}')
    result.assert_outcomes(passed=2, failed=2, skipped=2, warnings=1)
    result.stdout.fnmatch_lines(["*[[]XPASS(strict)[]] it used to*"])


def test_a_class_that_overrides_nothing_is_told_what_to_override(run: Run) -> None:
    result = run("pass")
    result.assert_outcomes(passed=1, errors=5)
    result.stdout.fnmatch_lines(["*TestMine does not say what is tested: override the fixture `kv_cache_factory`.*"])


@pytest.mark.parametrize(
    "line", ["def test_breaks(self): pass", "test_breaks = None", "test_no_check_is_replaced = None"]
)
def test_a_class_that_replaces_a_test_of_the_kit_is_refused(run: Run, line: str) -> None:
    result = run(FACTORY, line)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([
        "*TestMine replaces or removes test_*, which the conformance kit brings*expected_failures*"
    ])  # fmt: skip


@pytest.mark.parametrize("change", ["TestMine.test_breaks = lambda self: None", "del Toy.test_breaks"])
def test_what_is_changed_afterwards_is_refused_too(run: Run, change: str) -> None:
    result = run(FACTORY, after=f"\n{change}\n")
    assert result.parseoutcomes()["failed"] >= 1
    result.stdout.fnmatch_lines(["*replaces or removes test_breaks*"])


def test_a_mixin_cannot_take_a_test_away() -> None:
    class Quiet:
        test_no_check_is_replaced = None

    with pytest.raises(TypeError, match="TestMine replaces or removes test_no_check_is_replaced"):
        type("TestMine", (Quiet, KVCacheConformance), {})


def test_a_declared_failure_that_is_unknown_or_has_no_reason_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bases, "CHECKS", toy_checks.CHECKS)

    class Toy(Conformance, subject=KVCacheSubject):
        pass

    with pytest.raises(TypeError, match=r"names check_holdz, and no such .* Did you mean 'check_holds'\?"):
        type("TestMine", (Toy,), {"expected_failures": {"check_holdz": "typing error"}})
    with pytest.raises(TypeError, match="gives no reason for check_holds"):
        type("TestMine", (Toy,), {"expected_failures": {"check_holds": " "}})


@pytest.mark.parametrize(
    "base",
    [
        *(each for each in vars(bases).values() if isinstance(each, type) and each.__name__.endswith("Conformance")),
        PluginConformance,
        FamilyConformance,
        RequestConformance,
        EngineConformance,
    ],
)
def test_a_base_brings_the_checks_of_its_subject_and_tells_what_they_prove(base: type[Conformance]) -> None:
    brought = {name: test for name, test in vars(base).items() if name.startswith("test_")}
    by_name = {f"test_{check.name.removeprefix('check_')}": check for check in CHECKS}
    assert base is Conformance or {*brought} <= by_name.keys()
    for name, test in brought.items():
        if base is not Conformance:
            assert test.__doc__ == by_name[name].text


def test_every_check_is_in_a_base() -> None:
    brought = {
        name
        for base in (*Conformance.__subclasses__(), SamplerConformance)
        for name in vars(base)
        if name.startswith("test_")
    }
    assert {f"test_{check.name.removeprefix('check_')}" for check in CHECKS} <= brought


def test_a_family_that_nobody_registers_is_checked_by_its_descriptor() -> None:
    known = host_with("llada").models.entry("llada").descriptor
    assert family_of(known, host_with(known)).provenance.plugin == "llada"
    mine = ModelFamily(
        name="mine",
        build="diffulex_core.testing.reference.model:build",
        weights="diffulex_core.testing.reference.model:WEIGHTS",
        tiny="diffulex_core.testing.reference.model:TINY",
    )
    found = family_of(mine, host_with(mine))
    assert found.family == mine
    assert found.config["width"] == 32


def test_a_descriptor_that_takes_a_name_of_others_says_so() -> None:
    other = ModelFamily(name="mine", aliases=("llada",), build="m:b", weights="m:w")
    with pytest.raises(PluginError, match=r"what is under test cannot be registered: .*llada"):
        host_with(other)


def test_strategies_plugins_and_engines_are_made_from_names_descriptors_and_modules(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "")
    pytester.makepyfile(
        """
import pytest
from tests.conformance import toy_checks
from tests.conformance.test_bases import STRATEGY
from diffulex_core.testing.described import EngineConformance, FamilyConformance, PluginConformance, RequestConformance

class TestPlugin(PluginConformance):
    plugin = pytest.fixture(lambda self: toy_checks.plugin())
    def test_subject(self, subject):
        assert subject.label == "plugin toy_plugin"

class TestRequests(RequestConformance):
    strategy = pytest.fixture(lambda self: STRATEGY)
    def test_subject(self, subject):
        assert (subject.label, subject.strategy) == ("strategy my_way", STRATEGY)

class TestMode(RequestConformance):
    strategy = pytest.fixture(lambda self: "multi_bd")
    mode = pytest.fixture(lambda self: "edit")
    def test_subject(self, subject):
        assert subject.label == "strategy multi_bd in mode edit"

class TestNoMode(RequestConformance):
    strategy = pytest.fixture(lambda self: STRATEGY)
    mode = pytest.fixture(lambda self: "wild")
    def test_subject(self, subject):
        pass

class TestEngine(EngineConformance):
    family = pytest.fixture(lambda self: "llada")
    strategy = pytest.fixture(lambda self: STRATEGY)
    def test_subject(self, subject):
        assert subject.label == "family llada with strategy my_way"
"""
    )
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:xdist", "-k", "test_subject")
    outcomes = result.parseoutcomes()
    assert (outcomes["passed"], outcomes["errors"]) == (4, 1)
    result.stdout.fnmatch_lines(["*no installed family*runs with the strategy 'my_way' in the mode 'wild'*"])


STRATEGY = DecodingStrategy(
    name="my_way",
    pattern="diffulex_core.testing.reference.patterns:block_causal",
    requires={"mask_token", "block_causal"},
)
