"""`diffulex plugins`: what is installed, what it provides, and what is wrong with the rest."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import click

from diffulex_core.compat import missing_capabilities
from diffulex_core.descriptors import DecodingStrategy, ModelFamily
from diffulex_core.errors import UnknownNameError
from diffulex_core.host import Host, PluginRecord
from diffulex_core.registry import Entry
from diffulex_core.unknown import hints

_NO_PARTNER = {
    "strategies": "none is installed; `pip install diffulex` brings some",
    "families": "no model family is installed; `pip install diffulex` brings some",
}

as_json = click.option("--json", "machine", is_flag=True, help="Print JSON for machines.")


@click.group()
def plugins() -> None:
    """Show the plugins and what they provide."""


@plugins.command("list")
@as_json
@click.pass_obj
def list_plugins(host: Host, machine: bool) -> None:
    """List the installed plugins, those that could not be loaded included."""
    if machine:
        click.echo(json.dumps([plugin_facts(record) for record in host.plugins()], indent=2))
    else:
        _print_list(host)


@plugins.command("show")
@click.argument("name")
@as_json
@click.pass_obj
def show_plugin(host: Host, name: str, machine: bool) -> None:
    """Show everything called NAME: plugins, model families, strategies, attention backends and components."""
    findings = find(host, name)
    if machine:
        click.echo(json.dumps(findings, indent=2))
        return
    for finding in findings:
        _print_finding(finding)


def plugin_facts(record: PluginRecord) -> dict[str, Any]:
    """A plugin as JSON values."""
    origin = record.provenance
    return {
        "plugin": origin.plugin,
        "dist": origin.dist,
        "version": origin.version,
        "module": origin.module,
        "status": record.status,
        "reason": record.reason,
        "hooks": list(record.hooks),
        "registered": [attrs.asdict(item) for item in record.registered],
        "imports_torch": record.imports_torch,
    }


def find(host: Host, name: str) -> list[dict[str, Any]]:
    """Everything with that name or alias, as JSON values with a "kind" each.

    Raises:
        PluginError: two plugins claim the name.
        UnknownNameError: nothing has it.
    """
    findings: list[dict[str, Any]] = [
        {"kind": "plugin", **plugin_facts(record)}
        for record in host.plugins()
        if name in (record.provenance.plugin, record.provenance.dist)
    ]
    for kind, registry in host.registries.items():
        if name in registry:
            findings.append({"kind": kind, **_descriptor_facts(registry.entry(name), host)})
    if not findings:
        for registry in host.registries.values():
            if registry.is_contested(name):
                registry.get(name)
        raise UnknownNameError(_nothing_called(name, host))
    return findings


def _nothing_called(name: str, host: Host) -> str:
    return f"no plugin, model family, strategy, attention backend or component {name!r}. {hints(name, host)}"


def _descriptor_facts(entry: Entry[Any], host: Host) -> dict[str, Any]:
    descriptor, origin = entry.descriptor, entry.provenance
    facts: dict[str, Any] = {
        "name": descriptor.name,
        "plugin": origin.plugin,
        "dist": origin.dist,
        "version": origin.version,
        "fields": attrs.asdict(descriptor, value_serializer=_plain),
    }
    match descriptor:
        case ModelFamily():
            fit = {other.name: missing_capabilities(descriptor, other) for other in host.strategies}
            facts["strategies"] = {name: sorted(missing) for name, missing in fit.items()}
        case DecodingStrategy():
            fit = {other.name: missing_capabilities(other, descriptor) for other in host.models}
            facts["families"] = {name: sorted(missing) for name, missing in fit.items()}
    return facts


def _plain(_instance: object, _attribute: object, value: object) -> object:
    match value:
        case frozenset():
            return sorted(value)
        case Mapping():
            return dict(value)
        case _:
            return value


def _print_list(host: Host) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("plugin", "dist", "version", "status")
    table.add_column("registers", overflow="fold")
    colours = {"loaded": "green", "quarantined": "red", "disabled": "yellow"}
    for record in host.plugins():
        origin = record.provenance
        contents = [f"{kind}: {names}" for kind, names in _contents(record).items()]
        details = "\n".join([*contents, *([record.reason] if record.reason else [])])
        status = f"[{colours[record.status]}]{record.status}[/]"
        table.add_row(escape(origin.plugin), escape(origin.dist), escape(origin.version), status, escape(details))
    Console().print(table)


def _contents(record: PluginRecord) -> dict[str, str]:
    groups: dict[str, list[str]] = {}
    for item in record.registered:
        label = item.name + (f" (alias {', '.join(item.aliases)})" if item.aliases else "")
        groups.setdefault(item.kind.replace("_", " "), []).append(label)
    return {kind: ", ".join(labels) for kind, labels in groups.items()}


def _print_finding(finding: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    title = f"{finding['kind'].replace('_', ' ')} {finding.get('name', finding['plugin'])}"
    table = Table("", "", title=escape(title), title_justify="left", show_header=False)
    table.columns[1].overflow = "fold"
    for key, value in finding.items():
        if key == "fields":
            for field, content in value.items():
                if field != "presets":
                    table.add_row(escape(field), escape(_text(content)))
            for preset, settings in value.get("presets", {}).items():
                table.add_row(f"preset {escape(preset)}", escape(_text(settings)))
        elif key in ("strategies", "families"):
            if not value:
                table.add_row(key, _NO_PARTNER[key])
            for name, missing in value.items():
                verdict = f"does not fit: misses {', '.join(missing)}" if missing else "fits"
                table.add_row(f"with {escape(name)}", verdict)
        elif key not in ("kind", "name"):
            table.add_row(key, escape(_text(value)))
    Console().print(table)


def _entries(table: Mapping[str, object], group: str = "") -> Iterator[str]:
    """`key=value` of a table and of the tables in it, whose keys stand behind theirs."""
    for key, content in table.items():
        if isinstance(content, Mapping) and content:
            yield from _entries(content, f"{group}{key}.")
        else:
            yield f"{group}{key}={_text(content)}"


def _text(value: object) -> str:
    match value:
        case None:
            return "-"
        case list() | tuple():
            return ", ".join(map(_text, value)) or "-"
        case {"kind": kind, "name": name}:
            return f"{kind} {name}"
        case Mapping():
            return ", ".join(_entries(value)) or "-"
        case bool():
            return "yes" if value else "no"
        case _:
            return str(value) or "-"
