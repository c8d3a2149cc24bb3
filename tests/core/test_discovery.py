"""Discovery of real distributions, each time in a fresh interpreter."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.core.throwaway import Site

GOOD = """
@hookimpl
def diffulex_register_models(register):
    register(family("apple", aliases=("pomme",)))

@hookimpl
def diffulex_register_strategies(register):
    register(DecodingStrategy(name="press", pattern="nowhere.patterns:press"))
"""

REGISTER_MODELS = """
@hookimpl
def diffulex_register_models(register):
"""

REGISTER_COMPONENTS = REGISTER_MODELS.replace("models", "components")

CHERRY = """
@hookimpl
def diffulex_register_models(register):
    register(family("cherry"))
"""


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = Site(tmp_path)
    site.install("good", GOOD, version="1.2")
    return site


def test_an_installed_plugin_is_found_with_its_provenance(site: Site) -> None:
    report = site.discover(ask=["model/apple", "model/pomme", "strategy/press"])
    assert report.record("good") == {
        "plugin": "good",
        "dist": "diffulex-good",
        "version": "1.2",
        "module": "diffulex_good_plugin",
        "status": "loaded",
        "reason": "",
        "hooks": ["diffulex_register_models", "diffulex_register_strategies"],
        "registered": [
            {"kind": "model", "name": "apple", "aliases": ["pomme"]},
            {"kind": "strategy", "name": "press", "aliases": []},
        ],
        "imports_torch": False,
    }
    assert set(report.facts["answers"].values()) == {"good"}
    assert ["good", "diffulex-good", "1.2"] in report.facts["manifest"]


def test_core_is_listed_once_and_first(site: Site) -> None:
    assert [record["plugin"] for record in site.discover().facts["plugins"]].index("core") == 0
    assert site.discover().status("core") == ["loaded"]


def test_discovery_imports_no_torch_and_a_second_host_is_equal(site: Site) -> None:
    report = site.discover()
    assert report.facts["torch"] is False
    assert report.facts["again"] is True


def test_a_plugin_that_imports_torch_is_named(site: Site) -> None:
    site.install("heavy", "import sys, types\nsys.modules.setdefault('torch', types.ModuleType('torch'))\n")
    assert site.discover().record("heavy")["imports_torch"] is True
    assert site.discover().record("good")["imports_torch"] is False


def test_an_uninstalled_plugin_is_gone(site: Site) -> None:
    site.uninstall("diffulex-good")
    report = site.discover(ask=["model/apple"])
    assert report.status("good") == []
    assert report.answer("model/apple").startswith("UnknownNameError: no model family 'apple'.")
    assert "'good'" not in report.answer("model/apple")


BROKEN = {
    "a module that fails to import": ("import foo_kernels", "ModuleNotFoundError: No module named 'foo_kernels'"),
    "a syntax error": ("def (:", "SyntaxError: invalid syntax"),
    "an exit at import": ("raise SystemExit('bye')", "SystemExit: bye"),
    "a hook that raises": (
        GOOD.replace("apple", "pear").replace("pomme", "poire")
        + REGISTER_COMPONENTS
        + "    raise KeyError('no such thing')\n",
        "KeyError: 'no such thing'",
    ),
    "a descriptor of the wrong type": (
        REGISTER_MODELS + "    register(family('pear'))\n    register('plum')\n",
        "PluginError: diffulex_register_models registered a str; it takes ModelFamily values.",
    ),
    "a descriptor in the wrong hook": (
        "@hookimpl\ndef diffulex_register_strategies(register):\n    register(family('pear'))\n",
        "PluginError: diffulex_register_strategies registered a ModelFamily; it takes DecodingStrategy values.",
    ),
    "a descriptor with a bad reference": (
        REGISTER_MODELS + "    register(ModelFamily(name='pear', build='pear.net', weights='pear.net:W'))\n",
        "ValueError: build='pear.net' is not a reference",
    ),
    "an unknown kind of component": (
        REGISTER_COMPONENTS + "    register(Component(kind='samplr', name='pear', factory='pear.net:S'))\n",
        "PluginError: component 'pear' has kind='samplr'; the kinds are scheduler",
    ),
    "aliases that are one string": (
        REGISTER_MODELS + "    register(family('pear', aliases=('poire')))\n",
        "aliases is a tuple of names",
    ),
    "a name with white space": (
        REGISTER_MODELS + "    register(family('a pear'))\n",
        "registers a model family called 'a pear'; a name is text without white space.",
    ),
    "the same family twice": (
        REGISTER_MODELS + "    register(family('pear'))\n    register(family('plum', aliases=('pear',)))\n",
        "registers the model family 'pear' twice.",
    ),
    "a misspelled hook": (
        "@hookimpl\ndef diffulex_register_model(register):\n    register(family('pear'))\n",
        "'diffulex_register_model' is no hook. Did you mean 'diffulex_register_models'?",
    ),
    "an unmarked hook": (
        "def diffulex_register_models(register):\n    register(family('pear'))\n",
        "'diffulex_register_models' is not marked with @hookimpl.",
    ),
    "a helper with the prefix of hooks": (
        "def diffulex_pear():\n    return 3\n",
        "'diffulex_pear' is no hook, and names that start with 'diffulex_' are kept for hooks.",
    ),
    "a hook with an argument of its own": (
        "@hookimpl\ndef diffulex_register_models(registry):\n    registry(family('pear'))\n",
        "PluginValidationError: ",
    ),
}


@pytest.mark.parametrize(("source", "reason"), BROKEN.values(), ids=list(BROKEN))
def test_a_broken_plugin_is_quarantined_whole_and_named_when_a_name_is_missing(
    site: Site, source: str, reason: str
) -> None:
    site.install("bad", source, version="0.3.0")
    report = site.discover(ask=["model/pear", "strategy/pear", "model/apple"])
    assert report.status("bad") == ["quarantined"]
    assert reason in report.quarantine("bad")
    assert "pear" not in report.names("model") + report.names("strategy")
    assert "Not loaded: " in report.answer("model/pear")
    assert f"'bad' (diffulex-bad 0.3.0): {report.quarantine('bad').rstrip('.')}" in report.answer("model/pear")
    assert report.answer("model/apple") == "good"


def test_an_entry_point_that_names_no_module_is_quarantined(site: Site) -> None:
    site.install("odd", "plugin = 3", module="odd_plugin")
    (entry_points,) = site.path.glob("diffulex_odd-*/entry_points.txt")
    entry_points.write_text("[diffulex.v1]\nodd = odd_plugin:plugin\n")
    assert "a plugin is a module, written as 'package.module'" in site.discover().quarantine("odd")


@pytest.mark.parametrize("group", ["diffulex.v0", "diffulex.v2"])
def test_a_plugin_for_another_version_of_the_api_is_named_with_what_to_do(site: Site, group: str) -> None:
    site.install("other", CHERRY)
    (entry_points,) = site.path.glob("diffulex_other-*/entry_points.txt")
    entry_points.write_text(entry_points.read_text().replace("diffulex.v1", group))
    report = site.discover(ask=["model/cherry"])
    assert f"it is written for '{group}', another version of the plugin API" in report.quarantine("other")
    assert "reads 'diffulex.v1'" in report.answer("model/cherry")


def test_a_plugin_that_declares_several_versions_of_the_api_is_loaded_by_ours(site: Site) -> None:
    site.install("both", CHERRY)
    (entry_points,) = site.path.glob("diffulex_both-*/entry_points.txt")
    ours = entry_points.read_text()
    entry_points.write_text(ours + "\n" + ours.replace("diffulex.v1", "diffulex.v2"))
    report = site.discover(ask=["model/cherry"])
    assert report.status("both") == ["loaded"]
    assert report.answer("model/cherry") == "both"


def test_a_half_removed_distribution_does_not_stop_discovery(site: Site) -> None:
    site.install("ghost", CHERRY)
    (metadata,) = site.path.glob("diffulex_ghost-*/METADATA")
    metadata.unlink()
    report = site.discover(ask=["model/cherry"])
    assert report.record("ghost")["dist"] == "unknown distribution"
    assert report.answer("model/cherry") == "ghost"


def test_an_unknown_name_lists_what_each_distribution_registers_and_the_closest(site: Site) -> None:
    message = site.discover(ask=["model/appel"]).answer("model/appel")
    assert message.startswith("UnknownNameError: no model family 'appel'. Registered: ")
    assert "apple [alias pomme] (diffulex-good 1.2)" in message
    assert "Did you mean 'apple'?" in message


def test_two_distributions_with_one_plugin_name_are_both_kept_out_and_both_named(site: Site) -> None:
    site.install("twin", CHERRY, dist="orchard", version="3.1")
    site.install("twin", CHERRY.replace("cherry", "date"), dist="grove", version="0.9")
    report = site.discover(ask=["model/cherry", "model/apple"])
    assert report.status("twin") == ["quarantined", "quarantined"]
    for text in (report.quarantine("twin"), report.answer("model/cherry")):
        assert "'twin' is declared by grove 0.9 and by orchard 3.1" in text
        assert "DIFFULEX_DISABLE_PLUGINS=orchard (or grove)" in text
    assert report.answer("model/apple") == "good"


@pytest.mark.parametrize(
    ("plugins", "environ"),
    [
        (None, {"DIFFULEX_DISABLE_PLUGINS": "grove"}),
        (None, {"DIFFULEX_PLUGINS": "Orchard"}),
        (["orchard"], {}),
    ],
)
def test_the_advice_of_a_plugin_name_conflict_settles_it(
    site: Site, plugins: list[str] | None, environ: dict[str, str]
) -> None:
    site.install("twin", CHERRY, dist="orchard")
    site.install("twin", CHERRY.replace("cherry", "date"), dist="grove")
    report = site.discover(plugins, environ=environ, ask=["model/cherry"])
    assert report.answer("model/cherry") == "twin"
    assert sorted(report.status("twin")) == ["disabled", "loaded"]


def test_nobody_wins_a_family_name_that_two_plugins_claim(site: Site) -> None:
    site.install("rival", CHERRY.replace("cherry", "apple"), version="2.0")
    report = site.discover(ask=["model/apple", "model/pomme", "strategy/press"])
    for text in (report.answer("model/apple"), report.answer("model/pomme"), report.quarantine("rival")):
        assert "'apple' is registered by 'good' (diffulex-good 1.2) and by 'rival' (diffulex-rival 2.0)" in text
        assert "DIFFULEX_DISABLE_PLUGINS=rival (or good)" in text
    assert "apple" not in report.names("model")
    assert report.status("rival") == ["quarantined"]
    assert report.status("good") == ["loaded"]
    assert "'rival'" in report.record("good")["reason"]
    assert report.answer("strategy/press") == "good"


@pytest.mark.parametrize(("disabled", "winner"), [("rival", "good"), ("good", "rival")])
def test_disabling_either_side_of_a_name_conflict_settles_it(site: Site, disabled: str, winner: str) -> None:
    site.install("rival", CHERRY.replace("cherry", "apple"))
    report = site.discover(environ={"DIFFULEX_DISABLE_PLUGINS": disabled}, ask=["model/apple"])
    assert report.answer("model/apple") == winner


def test_an_alias_that_is_a_family_elsewhere_is_contested_but_the_family_behind_it_stays(site: Site) -> None:
    site.install("rival", CHERRY.replace("cherry", "pomme"))
    report = site.discover(ask=["model/pomme", "model/apple"])
    assert report.answer("model/apple") == "good"
    assert report.answer("model/pomme").startswith("PluginError: The model family 'pomme' is registered by 'good'")
    assert report.record("good")["registered"][0] == {"kind": "model", "name": "apple", "aliases": []}


@pytest.mark.parametrize("name", ["torch_ref", "naive"])
def test_a_builtin_name_cannot_be_taken(site: Site, name: str) -> None:
    site.install(
        "aardvark",
        "@hookimpl\ndef diffulex_register_attention(register):\n"
        f"    register(AttentionBackendPlugin(name={name!r}, impl='a.b:C', probe='a.b:probe'))\n",
    )
    report = site.discover(ask=[f"attention/{name}"])
    assert report.answer(f"attention/{name}") == "core"
    assert "built in and stays" in report.quarantine("aardvark")


def test_a_plugin_called_core_is_refused(site: Site) -> None:
    site.install("core", CHERRY, dist="usurper")
    report = site.discover(ask=["model/cherry"])
    assert report.status("core") == ["loaded", "quarantined"]
    assert "declared by diffulex-core" in report.quarantine("core")
    assert report.answer("model/cherry").startswith("UnknownNameError")


def test_one_module_under_two_plugin_names_is_loaded_once(site: Site) -> None:
    site.install("again", GOOD, module="diffulex_good_plugin")
    report = site.discover(ask=["model/apple"])
    assert report.answer("model/apple") == "again"
    assert "is plugin 'again' already" in report.quarantine("good")


@pytest.mark.parametrize(
    ("plugins", "environ"),
    [(["cherry"], {}), (None, {"DIFFULEX_PLUGINS": "cherry"}), (["cherry"], {"DIFFULEX_PLUGINS": "good"})],
    ids=["argument", "variable", "argument over variable"],
)
def test_an_allow_list_leaves_the_others_out(site: Site, plugins: list[str] | None, environ: dict[str, str]) -> None:
    site.install("cherry", CHERRY)
    report = site.discover(plugins, environ=environ, ask=["model/cherry", "model/apple"])
    assert report.answer("model/cherry") == "cherry"
    assert report.status("good") == ["disabled"]
    assert "'good' (diffulex-good 1.2): not listed in " in report.answer("model/apple")
    assert report.status("core") == ["loaded"]
    assert [name for name, *_ in report.facts["manifest"]] == ["cherry", "core"]


@pytest.mark.parametrize("denied", ["good", "diffulex-good", "Diffulex_Good", " other , good "])
def test_a_denied_plugin_is_left_out_even_when_it_is_allowed(site: Site, denied: str) -> None:
    environ = {"DIFFULEX_DISABLE_PLUGINS": denied}
    report = site.discover(["good"], environ=environ, ask=["model/apple"])
    assert report.status("good") == ["disabled"]
    assert "'good' (diffulex-good 1.2): disabled by DIFFULEX_DISABLE_PLUGINS" in report.answer("model/apple")


def test_a_denied_plugin_is_never_imported(site: Site) -> None:
    site.install("bomb", "raise SystemExit(3)")
    assert site.discover(environ={"DIFFULEX_DISABLE_PLUGINS": "bomb"}).status("bomb") == ["disabled"]


def test_an_empty_allow_variable_allows_everything(site: Site) -> None:
    assert site.discover(environ={"DIFFULEX_PLUGINS": ""}).status("good") == ["loaded"]


@pytest.mark.parametrize(("plugins", "environ"), [(["goood"], {}), (None, {"DIFFULEX_PLUGINS": "goood"})])
def test_a_misspelled_plugin_in_an_allow_list_is_an_error_with_the_closest_name(
    site: Site, plugins: list[str] | None, environ: dict[str, str]
) -> None:
    error = site.discover(plugins, environ=environ).error
    assert error.startswith("UnknownNameError: no plugin 'goood' (named by ")
    assert "good (diffulex-good 1.2)" in error
    assert "Did you mean 'good'?" in error
