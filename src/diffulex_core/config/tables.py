"""Tables of a config file that commands of plugins read: engines pass over them, so that one file serves all."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import attrs

from diffulex_core.config.layers import ENVIRONMENT_PREFIX, ConfigFile
from diffulex_core.config.schema import Section

if TYPE_CHECKING:
    from diffulex_core.host import Host
    from diffulex_core.registry import Provenance

_log = logging.getLogger(__name__)


def command_tables(host: Host, titles: Collection[str] = ()) -> dict[str, tuple[str, Provenance]]:
    """The tables by name: a reference to the class of their keys, and the plugin that reads them.

    Args:
        titles: sections of the engine's; a table of that name is the engine's, whoever else claims it.
    """
    found: dict[str, tuple[str, Provenance]] = {}
    for provenance, tables in host.callers("diffulex_config_tables"):
        try:
            told = {str(name): str(reference) for each in tables() for name, reference in each.items()}
        except Exception as error:  # noqa: BLE001 - a stranger's tables must not take engines away
            _log.warning("Config tables of plugin %s left out: %s: %s", provenance, type(error).__name__, error)
            continue
        for name in told.keys() - set(titles):
            found.setdefault(name, (told[name], provenance))
    return found


def table_sections(host: Host, titles: Collection[str] = ()) -> dict[str, tuple[Section, ...]]:
    """The sections of keys of each table; `titles` as for `command_tables`.

    Raises:
        PluginError: the class that a plugin names cannot be imported.
    """
    found = {}
    for name, (reference, provenance) in sorted(command_tables(host, titles).items()):
        cls = host.load(reference, provenance=provenance)
        attrs.resolve_types(cls)
        parts = [field.type for field in attrs.fields(cls) if field.type is not None and attrs.has(field.type)]
        found[name] = tuple(
            Section(name=name, owner=provenance.dist, cls=part, titles=(name,)) for part in parts or [cls]
        )
    return found


def without_tables(file: ConfigFile, tables: Collection[str]) -> ConfigFile:
    """A config file without these tables."""
    return attrs.evolve(file, values={name: value for name, value in file.values.items() if name not in tables})


def without_variables(environ: Mapping[str, str], tables: Collection[str]) -> dict[str, str]:
    """Environment variables without those of these tables."""
    others = tuple(f"{ENVIRONMENT_PREFIX}{name.upper()}__" for name in tables)
    return {variable: text for variable, text in environ.items() if not variable.startswith(others)}
