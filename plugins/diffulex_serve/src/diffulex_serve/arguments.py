"""The arguments that commands with an engine share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import click


def config_arguments(table: str) -> list[click.Parameter]:
    """`--config` and `--set`, as `config_file` and `settings`.

    Args:
        table: says what the command reads of the file besides the engine's keys.
    """
    return [
        click.Option(
            ["--config", "config_file"],
            type=click.Path(path_type=Path, dir_okay=False),
            help=f"YAML, TOML or JSON file with configuration keys; {table}.",
        ),
        click.Option(
            ["--set", "settings"],
            multiple=True,
            metavar="KEY=VALUE",
            help="Set any configuration key; may be repeated.",
        ),
    ]


def read_settings(settings: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Keys and texts of `--set`, as they were typed.

    Raises:
        click.BadParameter: one is not of the form KEY=VALUE.
    """
    for setting in settings:
        name, separator, text = setting.partition("=")
        if not separator or not name.strip():
            raise click.BadParameter(f"{setting!r} is not of the form KEY=VALUE", param_hint="--set")
        yield name.strip().replace("-", "_"), text
