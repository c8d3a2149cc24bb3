"""The command line: a group without commands of its own, filled by every plugin's `diffulex_add_commands`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence

import click

from diffulex_core import __version__
from diffulex_core.errors import DiffulexError, PluginError
from diffulex_core.host import Host
from diffulex_core.registry import Provenance, how_to_settle

_log = logging.getLogger(__name__)


def build_cli(host: Host) -> click.Group:
    """The command group with the commands of all loaded plugins.

    A plugin that raises, or that replaces another plugin's command, is left out with a warning. Commands find the host
    with `click.pass_obj`.
    """
    cli = click.Group(
        "diffulex",
        help="Inference for diffusion language models. Plugins add models, strategies and commands.",
        context_settings={"obj": host, "help_option_names": ["-h", "--help"]},
    )
    click.version_option(__version__, prog_name="diffulex")(cli)
    owners: dict[str, Provenance] = {}
    for provenance, add_commands in host.callers("diffulex_add_commands"):
        _add_commands(cli, provenance, add_commands, owners)
    return cli


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 when it went well, 2 with a message on stderr when the user can repair it."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        build_cli(Host.discover()).main(args=args, prog_name="diffulex")
    except DiffulexError as error:
        click.echo(f"{type(error).__name__}: {error}", err=True)
        sys.exit(2)


def _add_commands(
    cli: click.Group, provenance: Provenance, add_commands: Callable[..., object], owners: dict[str, Provenance]
) -> None:
    before = dict(cli.commands)
    try:
        add_commands(cli=cli)
        _refuse_replaced(before, cli.commands, provenance, owners)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a stranger's commands must not take the others away
        cli.commands = before
        _log.warning("Commands of plugin %s left out: %s: %s", provenance, type(error).__name__, error)
    owners.update({name: provenance for name in cli.commands if name not in owners})


def _refuse_replaced(
    before: Mapping[str, click.Command],
    after: Mapping[str, click.Command],
    provenance: Provenance,
    owners: dict[str, Provenance],
) -> None:
    for name, command in before.items():
        if after.get(name) is not command:
            raise PluginError(
                f"the command {name!r} is {owners[name]}'s already. {how_to_settle(owners[name], provenance)}"
            )
