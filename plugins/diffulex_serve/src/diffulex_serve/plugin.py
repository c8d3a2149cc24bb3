"""Adds the commands `diffulex serve` and `diffulex chat`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffulex_core.plugin import hookimpl

if TYPE_CHECKING:
    from collections.abc import Mapping

    import click


@hookimpl
def diffulex_config_tables() -> Mapping[str, str]:
    return {"serve": "diffulex_serve.options:ServeOptions", "chat": "diffulex_serve.chat.options:ChatOptions"}


@hookimpl
def diffulex_add_commands(cli: click.Group) -> None:
    from diffulex_serve.chat.command import chat
    from diffulex_serve.command import serve

    cli.add_command(serve)
    cli.add_command(chat)
