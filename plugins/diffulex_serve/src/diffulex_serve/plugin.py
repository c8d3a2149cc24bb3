"""Adds the commands `diffulex serve` and `diffulex chat`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffulex_core.plugin import hookimpl

if TYPE_CHECKING:
    import click


@hookimpl
def diffulex_add_commands(cli: click.Group) -> None:
    from diffulex_serve.chat.command import chat
    from diffulex_serve.command import serve

    cli.add_command(serve)
    cli.add_command(chat)
