"""Tables of a config file that commands of plugins read: engines pass over them, so that one file serves all."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import attrs

from diffulex_core.config.layers import ENVIRONMENT_PREFIX, ConfigFile
from diffulex_core.config.schema import Section

if TYPE_CHECKING:
    from diffulex_core.host import Host
    from diffulex_core.registry import Provenance


def command_tables(host: Host) -> dict[str, tuple[str, Provenance]]:
    """The tables by name: a reference to the class of their keys, and the plugin that reads them."""
    return {
        name: (reference, provenance)
        for provenance, tables in host.callers("diffulex_config_tables")
        for told in tables()
        for name, reference in told.items()
    }


def table_sections(host: Host) -> dict[str, tuple[Section, ...]]:
    """The sections of keys of each table.

    Raises:
        PluginError: the class that a plugin names cannot be imported.
    """
    found = {}
    for name, (reference, provenance) in command_tables(host).items():
        cls = host.load(reference, provenance=provenance)
        attrs.resolve_types(cls)
        parts = [field.type for field in attrs.fields(cls) if field.type is not None and attrs.has(field.type)]
        found[name] = tuple(
            Section(name=name, owner=provenance.dist, cls=part, titles=(name,)) for part in parts or [cls]
        )
    return found


def engine_part(file: ConfigFile, host: Host, titles: Collection[str]) -> ConfigFile:
    """A config file without the tables of commands.

    Args:
        titles: sections of the engine's; a table of that name is the engine's, whoever else claims it.
    """
    others = command_tables(host).keys() - set(titles)
    return attrs.evolve(file, values={name: value for name, value in file.values.items() if name not in others})


def engine_variables(environ: Mapping[str, str], host: Host, titles: Collection[str]) -> dict[str, str]:
    """Environment variables without those of the tables of commands; arguments as for `engine_part`."""
    others = tuple(f"{ENVIRONMENT_PREFIX}{name.upper()}__" for name in command_tables(host).keys() - set(titles))
    return {variable: text for variable, text in environ.items() if not variable.startswith(others)}
