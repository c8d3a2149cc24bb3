"""The kit's mechanics: which checks run, what their outcomes become, and what is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import hypothesis
import pytest
from click.testing import CliRunner, Result

from diffulex_core.cli import check as command
from diffulex_core.cli.app import build_cli, main
from diffulex_core.errors import ConfigError, PluginError, UnknownNameError
from diffulex_core.host import Host
from diffulex_core.plugin import ModelFamily, Register, hookimpl
from diffulex_core.testing import Effort, Outcome, check, checks_for, generate, run_checks
from diffulex_core.testing.subjects import KVCacheSubject
from tests.conformance import toy_checks

pytest_plugins = ["pytester"]

THREE_LINES = """
from diffulex_core.testing import parametrize_with_checks
from tests.conformance import toy_checks

@parametrize_with_checks("toy_cache", plugins=[toy_checks.plugin()], expected_failures={expected})
def test_conformance({argument}):
    check()
"""
RUNNER = CliRunner()
ROOT = Path(__file__).parent.parent.parent

Run = Callable[..., pytest.RunResult]


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the three-line test of the toy plugin."""
    monkeypatch.setattr(generate, "CHECKS", toy_checks.CHECKS)

    def run(*options: str, expected: dict[str, str] | None = None, argument: str = "check") -> pytest.RunResult:
        pytester.makepyfile(THREE_LINES.format(expected=expected or {}, argument=argument))
        return pytester.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:xdist", "-v", *options)

    return run


def test_each_check_of_the_tier_is_a_test_and_those_that_do_not_apply_are_left_out(run: Run) -> None:
    result = run()
    result.assert_outcomes(passed=2, failed=1, warnings=1)
    result.stdout.fnmatch_lines([
        "*test_conformance[[]check_holds[[]kv_cache toy_cache[]][]] PASSED*",
        "*test_conformance[[]check_breaks[[]kv_cache toy_cache[]][]] FAILED*",
        "*CheckFailed: kv_cache toy_cache is broken*",
    ])  # fmt: skip
    assert "check_takes_long" not in result.stdout.str()
    assert "check_is_about_others" not in result.stdout.str()


def test_a_higher_tier_runs_more_checks(run: Run) -> None:
    run("--diffulex-tier", "full").assert_outcomes(passed=3, failed=1, warnings=1)


def test_an_unknown_tier_is_a_usage_error(run: Run) -> None:
    assert run("--diffulex-tier", "forever").ret == pytest.ExitCode.USAGE_ERROR


def test_a_recommended_check_that_fails_is_a_warning(run: Run) -> None:
    result = run("-k", "check_matters_little")
    result.assert_outcomes(passed=1, warnings=1, deselected=2)
    result.stdout.fnmatch_lines(["*ConformanceWarning: check_matters_little*: it is not nice*"])


@pytest.mark.parametrize("key", ["check_breaks", "check_breaks[kv_cache toy_cache]"])
def test_a_declared_failure_is_expected(run: Run, key: str) -> None:
    result = run("-rx", expected={key: "it cannot do better"})
    result.assert_outcomes(passed=2, xfailed=1, warnings=1)
    result.stdout.fnmatch_lines(["*it cannot do better*"])


def test_a_recommended_check_may_be_declared_too(run: Run) -> None:
    run(expected={"check_matters_little": "never mind", **toy_checks.FAILS}).assert_outcomes(passed=1, xfailed=2)


def test_a_declared_failure_that_passes_is_an_error(run: Run) -> None:
    result = run(expected={"check_holds": "it used to fail"}, argument="check")
    result.assert_outcomes(passed=1, failed=2, warnings=1)
    result.stdout.fnmatch_lines(["*[[]XPASS(strict)[]] it used to fail*"])


def test_an_unknown_name_among_declared_failures_is_refused_with_the_closest_one(run: Run) -> None:
    result = run(expected={"check_break": "typing error"})
    assert result.ret != 0
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*expected_failures names check_break*Did you mean 'check_breaks'?*"])


def test_a_declared_failure_needs_a_reason(run: Run) -> None:
    result = run(expected={"check_breaks": ""})
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*expected_failures gives no reason for check_breaks*"])


def test_a_test_may_ask_for_the_checks_of_several(run: Run, pytester: pytest.Pytester) -> None:
    run()
    twice = THREE_LINES.format(expected=toy_checks.FAILS, argument="check").replace(
        "@", '@parametrize_with_checks("other_cache", plugins=[toy_checks.plugin(cache="other_cache")])\n@'
    )
    pytester.makepyfile(twice)
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:xdist")
    result.assert_outcomes(passed=4, xfailed=1, failed=1, warnings=2)


def test_a_declared_failure_of_a_check_that_the_tier_leaves_out_is_no_mistake(run: Run) -> None:
    result = run(expected={"check_takes_long": "it is slow", "check_is_about_others": "who knows", **toy_checks.FAILS})
    result.assert_outcomes(passed=2, xfailed=1, warnings=1)


def test_a_test_without_the_argument_is_told_how_to_write_it(run: Run) -> None:
    result = run(argument="")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*takes no argument `check`; write `def test(check):`*"])


def test_a_name_that_nobody_has_is_refused_with_the_closest_one(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        "from diffulex_core.testing import parametrize_with_checks\n"
        "@parametrize_with_checks('multibdd')\n"
        "def test_conformance(check):\n    check()\n"
    )
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:xdist")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*nothing is called 'multibdd'. Did you mean 'multibd'?*"])


def test_checks_run_in_several_processes(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makeconftest(
        "from diffulex_core.testing import generate\nfrom tests.conformance import toy_checks\n"
        "generate.CHECKS = toy_checks.CHECKS\n"
    )
    pytester.makepyfile(THREE_LINES.format(expected=toy_checks.FAILS, argument="check"))
    result = pytester.runpytest_subprocess("-p", "diffulex", "-p", "xdist", "-p", "no:cacheprovider", "-n", "2")
    result.assert_outcomes(passed=2, xfailed=1, warnings=1)


SPY = """
import sys
def pytest_sessionfinish(session):
    ours = sorted(name for name in sys.modules if name.split(".")[0] in ("diffulex_core", "torch", "hypothesis"))
    print("IMPORTED", ours)
"""


def test_nothing_of_ours_is_imported_until_a_test_asks(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Plugins of others may import what they like.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    ours = ("-p", "diffulex", "-p", "no:cacheprovider")
    pytester.makeconftest(SPY)
    pytester.makepyfile("def test_nothing(): pass")
    result = pytester.runpytest_subprocess(*ours, "--markers")
    result.stdout.fnmatch_lines(["*diffulex_checks(request)*", "*gpu:*", "*tp:*"])
    result = pytester.runpytest_subprocess(*ours, "--strict-markers", "-s")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*IMPORTED []*"])


def test_the_profiles_of_hypothesis_are_there_when_they_are_asked_for(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        "from hypothesis import settings\n"
        "def test_profile():\n"
        "    assert settings().max_examples == 200 and settings().derandomize\n"
    )
    options = ("-p", "no:cacheprovider", "-p", "no:xdist", "--hypothesis-profile", "diffulex-full")
    pytester.runpytest_subprocess(*options).assert_outcomes(passed=1)


def test_each_tier_that_draws_examples_has_a_profile(run: Run) -> None:
    run()
    profiles = [hypothesis.settings.get_profile(f"diffulex-{tier}") for tier in ("fast", "full", "nightly")]
    assert [profile.max_examples for profile in profiles] == [20, 200, 2000]
    assert [profile.derandomize for profile in profiles] == [True, True, False]


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[object]]:
    """Checks of the toy plugin, which need not be installed."""
    monkeypatch.setattr(generate, "CHECKS", toy_checks.CHECKS)
    return partial(checks_for, "toy_cache", plugins=[toy_checks.plugin()])


def test_the_outcomes_are_those_that_were_declared(toys: Callable[..., list[object]]) -> None:
    outcomes = {each.check: each for each in run_checks(toys(), {"check_holds": "old", **toy_checks.FAILS})}
    assert {name: each.status for name, each in outcomes.items()} == {
        "check_holds": "unexpected",
        "check_breaks": "expected",
        "check_matters_little": "warned",
        "check_takes_long": "not applicable",
        "check_is_about_others": "not applicable",
    }
    assert [name for name, each in outcomes.items() if each.bad] == ["check_holds"]
    with pytest.raises(ConfigError, match=r"names check_hold, and no such check runs here. Did you mean 'check_holds'"):
        list(run_checks(toys(), {"check_hold": "typing error"}))


def test_a_check_is_bound_by_the_name_of_the_plugin_and_of_what_it_registers(
    toys: Callable[..., list[object]],
) -> None:
    of_component = {each.id for each in toys()}
    of_plugin = {each.id for each in checks_for("toy_plugin", plugins=[toy_checks.plugin()])}
    assert of_component <= of_plugin
    with pytest.raises(UnknownNameError, match="Did you mean 'toy_cache'"):
        checks_for("toy_cash", plugins=[toy_checks.plugin()])


def test_code_under_test_that_exits_or_cannot_say_what_it_is_fails_its_check(monkeypatch: pytest.MonkeyPatch) -> None:
    @check(KVCacheSubject)
    def check_exits(subject: KVCacheSubject, effort: Effort) -> None:
        """Ends the process.

        Why: the mechanics need one that does.
        Fix: nothing.
        """
        sys.exit(3)

    @check(KVCacheSubject, when=lambda subject: str(1 // 0))
    def check_is_unclear(subject: KVCacheSubject, effort: Effort) -> None:
        """Does not know whether it applies.

        Why: the mechanics need one that does not.
        Fix: nothing.
        """

    monkeypatch.setattr(generate, "CHECKS", (check_exits, check_is_unclear))
    exits, unclear = run_checks(checks_for("toy_cache", plugins=[toy_checks.plugin()]))
    assert (exits.status, exits.message) == ("failed", "CheckFailed: code under test ended the process, with status 3.")
    assert (unclear.status, unclear.message[:17]) == ("failed", "ZeroDivisionError")


def test_a_part_that_cannot_be_loaded_does_not_keep_the_others_from_being_checked() -> None:
    module = toy_checks.plugin("half_broken")

    @hookimpl
    def diffulex_register_models(register: Register[ModelFamily]) -> None:
        for name, tiny in (("lost", "nowhere:TINY"), ("strange", "json:dumps")):
            register(ModelFamily(name=name, build="nowhere:build", weights="nowhere:WEIGHTS", tiny=tiny))

    vars(module)["diffulex_register_models"] = diffulex_register_models
    bound = checks_for("half_broken", plugins=[module])
    assert "kv_cache toy_cache" in {each.subject.label for each in bound}
    of_plugin = [each for each in bound if each.subject.label == "plugin half_broken"]
    message = "".join(each.message for each in run_checks(of_plugin) if each.bad)
    assert "'nowhere:TINY'" in message
    with pytest.raises(PluginError, match=r"'json:dumps' of plugin 'half_broken'.*is .*; a `tiny` is a config.json"):
        checks_for("strange", plugins=[module])


def invoke(*arguments: str) -> Result:
    return RUNNER.invoke(build_cli(Host.discover([], {})), ["plugins", "check", *arguments])


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, toys: Callable[..., list[object]]) -> None:
    """The command finds the toy plugin as if it were installed."""
    monkeypatch.setattr("diffulex_core.testing.checks_for", lambda name, tier: toys(tier=tier))


@pytest.mark.usefixtures("installed")
def test_the_command_prints_a_line_for_each_check_and_fails_when_a_required_one_does() -> None:
    result = invoke("toy_cache")
    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert any(line.split()[:2] == ["passed", "check_holds[kv_cache"] for line in lines)
    assert any(line.split()[:2] == ["failed", "check_breaks[kv_cache"] for line in lines)
    assert any(line.split()[:2] == ["warned", "check_matters_little[kv_cache"] for line in lines)
    assert "CheckFailed: kv_cache toy_cache is broken" in result.output
    assert "is too small" not in result.output
    assert lines[-1].startswith("toy_cache: 1 passed, 1 failed, 1 warned, 2 not applicable in ")


@pytest.mark.usefixtures("installed")
def test_the_command_tells_once_what_breaks_many_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = [
        Outcome(check=f"check_{name}", subject="toy", level="required", status="failed", seconds=0.0, message="No key.")
        for name in ("one", "two", "three")
    ]
    monkeypatch.setattr("diffulex_core.testing.run_checks", lambda bound: iter(broken))
    said = invoke("toy_cache").output
    assert said.count("No key.") == 1
    assert said.count("the same as check_one") == 2


@pytest.mark.usefixtures("installed")
def test_the_command_tells_more_when_asked() -> None:
    everything = invoke("toy_cache", "--all").output
    assert "toy_cache is too small" in everything
    assert "it runs in the tier full" in everything
    assert "Traceback" not in invoke("toy_cache").output
    assert "Traceback" in invoke("toy_cache", "--verbose").output
    assert "check_takes_long" not in invoke("toy_cache").output
    assert "check_takes_long" in invoke("toy_cache", "--tier", "full").output


@pytest.mark.usefixtures("installed")
def test_the_command_prints_json_for_machines() -> None:
    result = invoke("toy_cache", "--json")
    assert result.exit_code == 1
    record = json.loads(result.output)
    assert (record["name"], record["tier"]) == ("toy_cache", "fast")
    assert record["counts"] == {
        "passed": 1, "failed": 1, "unexpected": 0, "warned": 1, "expected": 0, "not applicable": 2,
    }  # fmt: skip
    broken = next(each for each in record["checks"] if each["check"] == "check_breaks")
    assert broken["subject"] == "kv_cache toy_cache"
    assert broken["status"] == "failed"
    assert "is broken" in broken["message"]
    assert "Traceback" in broken["details"]


@pytest.mark.usefixtures("installed")
def test_what_code_under_test_prints_does_not_spoil_the_json(monkeypatch: pytest.MonkeyPatch) -> None:
    @check(KVCacheSubject)
    def check_chatters(subject: KVCacheSubject, effort: Effort) -> None:
        """Prints.

        Why: the mechanics need one that does.
        Fix: nothing.
        """
        print("{ hello")

    monkeypatch.setattr(generate, "CHECKS", (check_chatters,))
    result = invoke("toy_cache", "--json")
    assert json.loads(result.stdout)["counts"]["passed"] == 1
    assert "{ hello" in result.stderr


@pytest.mark.usefixtures("installed")
def test_the_command_succeeds_when_only_recommended_checks_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "CHECKS", (toy_checks.check_holds, toy_checks.check_matters_little))
    result = invoke("toy_cache")
    assert result.exit_code == 0
    assert "toy_cache: 1 passed, 1 warned in " in result.output


def test_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == "hypothesis" else object())
    result = invoke("core")
    assert isinstance(result.exception, PluginError)
    assert "needs hypothesis; pip install 'diffulex-core[testing]'" in str(result.exception)


def test_the_command_refuses_a_name_that_nobody_has(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["plugins", "check", "multibdd"])
    assert end.value.code == 2
    assert "UnknownNameError: nothing is called 'multibdd'. Did you mean 'multibd'?" in capsys.readouterr().err
