"""Adds the command `diffulex serve`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffulex_core.plugin import hookimpl

if TYPE_CHECKING:
    import click


@hookimpl
def diffulex_add_commands(cli: click.Group) -> None:
    from diffulex_serve.command import serve

    cli.add_command(serve)
