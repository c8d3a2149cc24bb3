"""Tables of a config file that commands of plugins read: engines pass over them and over their variables."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import attrs
import pytest

from diffulex_core.config import ConfigFile, key
from diffulex_core.config.describe import json_schema
from diffulex_core.config.schema import core_sections
from diffulex_core.config.tables import command_tables, table_sections, without_tables, without_variables
from diffulex_core.errors import PluginError
from diffulex_core.host import Host
from diffulex_core.plugin import hookimpl


@attrs.frozen(kw_only=True)
class Oven:
    """A section."""

    heat: int = key(180, "How hot.", minimum=0)


@attrs.frozen(kw_only=True)
class Kitchen:
    """Keys in sections."""

    oven: Oven = attrs.field(factory=Oven)
    note: dict[str, str] = attrs.field(factory=dict)


def host_of(*answers: Callable[[], Any]) -> Host:
    modules = []
    for number, answer in enumerate(answers):

        def diffulex_config_tables(answer: Callable[[], Any] = answer) -> Any:
            return answer()

        module = ModuleType(f"plugin_{number}")
        module.__dict__["diffulex_config_tables"] = hookimpl(diffulex_config_tables)
        modules.append(module)
    return Host.discover([], {}, extra=modules)


HERE = f"{__name__}:"


def test_engines_pass_over_the_tables_of_commands_and_keep_the_rest() -> None:
    tables = command_tables(host_of(lambda: {"cook": f"{HERE}Kitchen"}, lambda: {"bake": f"{HERE}Oven"}))
    assert tables.keys() == {"cook", "bake"}
    file = ConfigFile(name="f", values={"cook": {"heat": 1}, "page_size": 16, "cooker": {}})
    assert without_tables(file, tables) == ConfigFile(name="f", values={"page_size": 16, "cooker": {}})
    variables = {"DIFFULEX_COOK__HEAT": "1", "DIFFULEX_COOKER__HEAT": "1", "DIFFULEX_CACHE__PAGE_SIZE": "8", "PATH": ""}
    left = without_variables(variables, tables)
    assert left.keys() == {"DIFFULEX_COOKER__HEAT", "DIFFULEX_CACHE__PAGE_SIZE", "PATH"}


def test_nobody_takes_a_section_from_the_engine() -> None:
    host = host_of(lambda: {"cache": f"{HERE}Oven", "cook": f"{HERE}Oven"})
    assert command_tables(host, {"cache"}).keys() == {"cook"}


def test_the_first_of_two_plugins_keeps_a_table_that_both_name() -> None:
    host = host_of(lambda: {"cook": f"{HERE}Oven"}, lambda: {"cook": f"{HERE}Kitchen"})
    reference, provenance = command_tables(host)["cook"]
    assert (reference, provenance.plugin) == (f"{HERE}Oven", "plugin_0")


@pytest.mark.parametrize("answer", [lambda: ["cook"], lambda: 1 // 0])
def test_a_plugin_that_fails_costs_its_own_tables_only(
    answer: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    host = host_of(answer, lambda: {"bake": f"{HERE}Oven"})
    assert command_tables(host).keys() == {"bake"}
    assert "Config tables of plugin" in caplog.text
    assert "plugin_0" in caplog.text


def test_the_schema_describes_keys_in_sections_and_keys_alone() -> None:
    host = host_of(lambda: {"cook": f"{HERE}Kitchen", "bake": f"{HERE}Oven"})
    schema = json_schema(core_sections(), tables=table_sections(host))
    for name in ("cook", "bake"):
        table = schema["properties"][name]
        assert table["additionalProperties"] is False
        assert table["properties"] == {
            "heat": {"description": "How hot.", "default": 180, "type": "integer", "minimum": 0}
        }
    assert "heat" not in schema["properties"]


def test_a_class_that_is_not_there_is_told_with_its_plugin() -> None:
    with pytest.raises(PluginError, match="plugin_0"):
        table_sections(host_of(lambda: {"cook": f"{HERE}Nothing"}))
