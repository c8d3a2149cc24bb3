"""`diffulex config`: what every key is, which value it has and who set it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import click

from diffulex_core.config import EngineConfig, Text
from diffulex_core.config.describe import (
    Explained,
    allowed,
    explain,
    installed_sections,
    installed_sizes,
    json_schema,
    not_built,
    type_name,
)
from diffulex_core.config.tables import table_sections
from diffulex_core.errors import UnknownNameError
from diffulex_core.host import Host
from diffulex_core.registry import did_you_mean

F = TypeVar("F", bound=Callable[..., Any])


def config_options(command: F) -> F:
    """Adds --model, --config and --set to a command; the last arrives as `settings`, for `read_settings`."""
    for decorate in (
        click.option(
            "--set",
            "settings",
            multiple=True,
            metavar="KEY=VALUE",
            help="Set a configuration key; may be given several times.",
        ),
        click.option(
            "--config",
            "config_file",
            type=click.Path(path_type=Path, dir_okay=False),
            help="YAML, TOML or JSON file with configuration keys.",
        ),
        click.option("--model", help="Checkpoint: a directory, or a name such as tiny/llada."),
    ):
        command = decorate(command)
    return command


def read_settings(settings: Sequence[str]) -> dict[str, Text]:
    """`KEY=VALUE` texts as options for `resolve`; the last of equal keys counts.

    Raises:
        click.BadParameter: one has no `=` or no key.
    """
    options = {}
    for setting in settings:
        name, separator, text = setting.partition("=")
        if not separator or not name.strip():
            raise click.BadParameter(f"{setting!r} is not of the form KEY=VALUE", param_hint="--set")
        options[name.strip().replace("-", "_")] = Text(text)
    return options


@click.group()
def config() -> None:
    """Show configuration keys and where their values come from."""


@config.command("explain")
@config_options
@click.option("--json", "machine", is_flag=True, help="Print JSON for machines.")
@click.argument("key", required=False)
@click.pass_obj
def explain_command(
    host: Host, model: str | None, config_file: Path | None, settings: Sequence[str], machine: bool, key: str | None
) -> None:
    """Show every key, or KEY alone: value, default, owner and who set it."""
    from diffulex_core.config.load import load_config

    loaded = load_config(
        model,
        read_settings(settings),
        host=host,
        config_file=config_file,
        environ=os.environ,
        strict=True,
        given_by="the command line",
    )
    rows = _choose(loaded.config, key)
    if machine:
        click.echo(json.dumps(_facts(loaded.config, rows), indent=2))
    else:
        _print_table(rows)
        if key is None:
            _print_notes(loaded.config)
        else:
            _print_details(rows)


@config.command("schema")
@click.pass_obj
def schema_command(host: Host) -> None:
    """Print the JSON Schema of a config file: all keys that this installation knows."""
    described = json_schema(installed_sections(host), installed_sizes(host), table_sections(host))
    click.echo(json.dumps(described, indent=2))


def _choose(config: EngineConfig, key: str | None) -> tuple[Explained, ...]:
    rows = explain(config)
    if key is None:
        return rows
    schema = config.schema()
    name = key.replace("-", "_")
    if name in schema.groups:
        wanted = {spec.name for spec in schema.groups[name].values()}
    elif name in schema.by_name:
        wanted = {schema.by_name[name].name}
    else:
        known = [*schema.by_name, *schema.groups]
        raise UnknownNameError(f"no configuration key '{key}'. {did_you_mean(name, known)}".rstrip())
    return tuple(row for row in rows if row.spec.name in wanted)


def _facts(config: EngineConfig, rows: Sequence[Explained]) -> dict[str, Any]:
    return {
        "model_family": config.family.name,
        "decoding_strategy": config.strategy.name,
        "keys": [row.as_json() for row in rows],
        "sampling_defaults": dict(config.sampling_defaults),
        "warnings": list(config.warnings),
    }


def _print_table(rows: Sequence[Explained]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("key", "value", "default", "set by"):
        table.add_column(name, overflow="fold", no_wrap=name == "key")
    for where, group in groupby(rows, key=lambda row: row.spec.where):
        table.add_row(f"[italic]{escape(where)}")
        for row in group:
            note = " (unused)" if row.unused else ""
            style = "dim" if row.unused else "bold" if row.origin.by_user else None
            cells = (row.spec.name, _show(row.value), _show(row.spec.default), f"{row.origin}{note}")
            table.add_row(*map(escape, cells), style=style)
    Console().print(table)


def _print_details(rows: Sequence[Explained]) -> None:
    for row in rows:
        limits = f"Allowed: {allowed(row.spec)}." if allowed(row.spec) else ""
        parts = (f"{row.spec.name} ({type_name(row.spec.kind)}): {row.spec.info.help}", limits, not_built(row.spec))
        click.echo(" ".join(filter(None, parts)))


def _print_notes(config: EngineConfig) -> None:
    if config.unused:
        click.echo(f"Unused by the strategy '{config.strategy.name}': {', '.join(config.unused)}.")
    for name, value in config.sampling_defaults.items():
        click.echo(f"Sampling default of the checkpoint: {name} = {_show(value)}")
    for warning in config.warnings:
        click.echo(f"Warning: {warning}")


def _show(value: object) -> str:
    return json.dumps(value) if not isinstance(value, str) else value or '""'
