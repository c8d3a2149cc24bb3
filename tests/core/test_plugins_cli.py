"""`diffulex plugins` and the command group that plugins fill."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

import diffulex_core
from diffulex_core.cli.app import build_cli, main
from diffulex_core.errors import UnknownNameError
from diffulex_core.host import Host
from diffulex_core.plugin import hookimpl
from tests.core.throwaway import Site

FRUIT = """
@hookimpl
def diffulex_register_models(register):
    register(family("apple", aliases=("pomme",), provides={"mask_token"}, defaults={"block_size": 4}))

@hookimpl
def diffulex_register_strategies(register):
    register(DecodingStrategy(name="press", pattern="nowhere:press", requires={"mask_token"}))
    register(DecodingStrategy(name="bake", pattern="nowhere:bake", requires={"oven", "mask_token"}))
"""


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = Site(tmp_path)
    site.install("fruit", FRUIT, version="1.2")
    site.install("rotten", "import no_such_kernels", version="0.1")
    return site


def read_json(site: Site, *arguments: str, environ: Mapping[str, str] | None = None) -> Any:
    process = site.run("-m", "diffulex_core", *arguments, "--json", environ=environ)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def test_list_shows_every_plugin_what_it_registers_and_what_is_wrong(site: Site) -> None:
    process = site.run("-m", "diffulex_core", "plugins", "list")
    assert process.returncode == 0, process.stderr
    for text in ("diffulex-fruit", "1.2", "apple (alias pomme)", "quarantined", "No module named 'no_such_kernels'"):
        assert text in process.stdout


def test_list_as_json_holds_hooks_and_reasons(site: Site) -> None:
    records = {record["plugin"]: record for record in read_json(site, "plugins", "list")}
    assert records["fruit"]["hooks"] == ["diffulex_register_models", "diffulex_register_strategies"]
    assert {"kind": "model", "name": "apple", "aliases": ["pomme"]} in records["fruit"]["registered"]
    assert records["rotten"]["status"] == "quarantined"
    assert records["rotten"]["reason"] == "ModuleNotFoundError: No module named 'no_such_kernels'"
    assert records["core"]["dist"] == "diffulex-core"


def test_the_environment_applies_to_the_command_line(site: Site) -> None:
    records = read_json(site, "plugins", "list", environ={"DIFFULEX_DISABLE_PLUGINS": "fruit"})
    assert {record["plugin"]: record["status"] for record in records}["fruit"] == "disabled"


def test_listing_plugins_imports_no_torch(site: Site) -> None:
    script = (
        "import sys\nfrom diffulex_core.cli.app import main\n"
        "try:\n    main(['plugins', 'list'])\n"
        "except SystemExit as end:\n    print('code', end.code, 'torch', 'torch' in sys.modules)\n"
    )
    process = site.run("-c", script)
    assert process.stdout.splitlines()[-1] == "code 0 torch False", process.stderr


def test_show_a_family_says_which_strategies_fit_and_what_others_miss(site: Site) -> None:
    for name in ("apple", "pomme"):
        (family,) = read_json(site, "plugins", "show", name)
        assert (family["kind"], family["name"], family["dist"]) == ("model", "apple", "diffulex-fruit")
        assert family["strategies"]["press"] == []
        assert family["strategies"]["bake"] == ["oven"]
        assert family["fields"]["provides"] == ["mask_token"]
        assert family["fields"]["defaults"] == {"block_size": 4}


def test_show_a_strategy_says_which_families_fit(site: Site) -> None:
    (strategy,) = read_json(site, "plugins", "show", "bake")
    assert strategy["fields"]["requires"] == ["mask_token", "oven"]
    assert strategy["families"]["apple"] == ["oven"]


def test_show_for_people_names_the_missing_capability(site: Site) -> None:
    process = site.run("-m", "diffulex_core", "plugins", "show", "apple")
    assert "does not fit: misses oven" in process.stdout
    assert "fits" in process.stdout


def test_show_for_people_says_that_there_is_nothing_to_fit(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.install("lonely", '@hookimpl\ndef diffulex_register_models(register):\n    register(family("alone"))\n')
    allowed = {"DIFFULEX_PLUGINS": "lonely"}
    assert "none is installed" in site.run("-m", "diffulex_core", "plugins", "show", "alone", environ=allowed).stdout


@pytest.mark.parametrize("name", ["rotten", "diffulex-rotten"])
def test_show_a_quarantined_plugin_gives_the_reason(site: Site, name: str) -> None:
    (record,) = read_json(site, "plugins", "show", name)
    assert record["kind"] == "plugin"
    assert "no_such_kernels" in record["reason"]


def test_show_a_backend_and_a_component_by_alias_and_name(site: Site) -> None:
    assert read_json(site, "plugins", "show", "naive")[0]["fields"]["name"] == "torch_ref"
    assert read_json(site, "plugins", "show", "hub")[0]["kind"] == "model_source"


def test_a_mistake_is_a_clean_message_and_exit_code_2(site: Site) -> None:
    process = site.run("-m", "diffulex_core", "plugins", "show", "appel")
    assert process.returncode == 2
    assert process.stdout == ""
    assert (
        "UnknownNameError: no plugin, model family, strategy, attention backend or component 'appel'" in process.stderr
    )
    assert "Did you mean 'apple'?" in process.stderr
    assert "Traceback" not in process.stderr


def test_a_misspelled_allow_variable_is_a_clean_message_and_exit_code_2(site: Site) -> None:
    process = site.run("-m", "diffulex_core", "plugins", "list", environ={"DIFFULEX_PLUGINS": "froot"})
    assert process.returncode == 2
    assert "Did you mean 'fruit'?" in process.stderr
    assert "Traceback" not in process.stderr


def test_show_a_contested_name_gives_the_conflict(site: Site) -> None:
    site.install("rival", "@hookimpl\ndef diffulex_register_models(register):\n    register(family('apple'))\n")
    process = site.run("-m", "diffulex_core", "plugins", "show", "apple")
    assert process.returncode == 2
    assert "is registered by 'fruit' (diffulex-fruit 1.2) and by 'rival' (diffulex-rival 1.0)" in process.stderr


def test_the_version_is_cores(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DIFFULEX_PLUGINS", raising=False)
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"diffulex, version {diffulex_core.__version__}\n"


def plugin(name: str, add_commands: Callable[[click.Group], None]) -> ModuleType:
    def diffulex_add_commands(cli: click.Group) -> None:
        add_commands(cli)

    module = ModuleType(name)
    module.__dict__["diffulex_add_commands"] = hookimpl(diffulex_add_commands)
    return module


def invoke(*modules: ModuleType, arguments: list[str]) -> Result:
    return CliRunner().invoke(build_cli(Host.discover([], {}, extra=modules)), arguments)


def says(text: str, name: str) -> click.Command:
    return click.Command(name, callback=lambda: click.echo(text))


def test_a_plugin_adds_commands_and_subcommands() -> None:
    def add(cli: click.Group) -> None:
        cli.add_command(says("sweet", "taste"))
        plugins = cli.commands["plugins"]
        assert isinstance(plugins, click.Group)
        plugins.add_command(says("ripe", "ripeness"))

    module = plugin("fruit", add)
    assert invoke(module, arguments=["taste"]).output == "sweet\n"
    assert invoke(module, arguments=["plugins", "ripeness"]).output == "ripe\n"


def test_a_plugin_that_raises_while_adding_commands_loses_only_its_own(caplog: pytest.LogCaptureFixture) -> None:
    def add(cli: click.Group) -> None:
        cli.add_command(says("half", "half"))
        raise RuntimeError("no terminal")

    modules = plugin("bad", add), plugin("good", lambda cli: cli.add_command(says("sweet", "taste")))
    assert invoke(*modules, arguments=["half"]).exit_code == 2
    assert invoke(*modules, arguments=["taste"]).output == "sweet\n"
    assert "Commands of plugin 'bad' (given as a module) left out: RuntimeError: no terminal" in caplog.text


def test_a_command_of_another_plugin_cannot_be_replaced(caplog: pytest.LogCaptureFixture) -> None:
    modules = [
        plugin("a", lambda cli: cli.add_command(says("first", "taste"))),
        plugin("b", lambda cli: cli.add_command(says("second", "taste"))),
    ]
    assert invoke(*modules, arguments=["taste"]).output == "first\n"
    assert "the command 'taste' is 'a' (given as a module)'s already" in caplog.text


def test_commands_get_the_host() -> None:
    @click.command("lookup")
    @click.pass_obj
    def lookup(host: Host) -> None:
        host.models.get("appel")

    result = invoke(plugin("fruit", lambda cli: cli.add_command(lookup)), arguments=["lookup"])
    assert isinstance(result.exception, UnknownNameError)
