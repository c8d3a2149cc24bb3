"""`diffulex serve`: its options are the configuration keys, in their sections."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from diffulex_core.config import KeySpec, read_config_file
from diffulex_core.config.convert import choices_of
from diffulex_core.config.describe import allowed, type_name
from diffulex_core.config.schema import build_schema, core_sections
from diffulex_core.host import Host
from diffulex_serve.arguments import config_arguments, read_settings
from diffulex_serve.options import TITLE
from diffulex_serve.settings import divide, read_options, serve_schema

_NAMED_APART = frozenset({"model"})
_WIDEST_HELP = 110


class KeyOption(click.Option):
    """An option that sets a configuration key; the text is read as the key's type when the configuration is."""

    def __init__(self, spec: KeySpec, group: str) -> None:
        self.spec, self.group = spec, group
        flag = spec.name.replace(".", "-").replace("_", "-")
        limits = "" if choices_of(spec.kind) else allowed(spec)
        about = "; ".join(filter(None, [limits, f"default: {_shown(spec.default)}"]))
        super().__init__(
            [f"--{flag}", _variable(spec.name)],
            metavar=_metavar(spec.kind),
            help=f"{spec.info.help} [{about}]",
        )


class GroupedCommand(click.Command):
    """A command whose help shows the options of each section under its name."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help of all options."""
        groups: dict[str, list[tuple[str, str]]] = {"Options": []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                groups.setdefault(param.group if isinstance(param, KeyOption) else "Options", []).append(record)
        for name, records in groups.items():
            with formatter.section(name):
                formatter.write_dl(records)


def _metavar(kind: Any) -> str:
    """How values of a type are called in the help."""
    choices = choices_of(kind)
    if choices:
        return "|".join(map(str, choices))
    name = type_name(kind).partition(" or ")[0]
    several = name.removeprefix("list of ")
    word = "TEXT" if several == "str" else several.upper()
    return word if several == name else f"{word},..."


def _shown(default: object) -> str:
    """A default as it would be written in a config file."""
    if isinstance(default, tuple):
        return ", ".join(map(str, default)) or "none"
    return default or "empty" if isinstance(default, str) else json.dumps(default)


def _variable(name: str) -> str:
    """The argument of the command that carries a key."""
    return f"key_{name.replace('.', '__')}"


def _key_options() -> list[click.Parameter]:
    serve, core = serve_schema(), build_schema(core_sections())
    return [
        *(KeyOption(spec, "Server" if spec.section == "server" else f"Server: {spec.section}") for spec in serve),
        *(KeyOption(spec, f"Engine: {spec.section}") for spec in core if spec.name not in _NAMED_APART),
    ]


def _run(
    host: Host,
    /,
    model: str | None,
    config_file: Path | None,
    settings: Sequence[str],
    no_restart: bool,
    **typed: str | None,
) -> None:
    """Serve a model over HTTP, with OpenAI's routes and those of diffulex.

    Every key may also stand in the --config file, those of the server under `serve:`, or in the environment as
    DIFFULEX_<SECTION>__<KEY>, such as DIFFULEX_SERVE__API_KEY. --set reaches keys of families and strategies.
    """
    from diffulex_serve.engine.spec import EngineSpec
    from diffulex_serve.launch import listen, run
    from diffulex_serve.logs import configure_logs
    from diffulex_serve.texts import Texts

    table, file = divide(None if config_file is None else read_config_file(config_file))
    own, engine = _divide_typed(typed, settings)
    if no_restart:
        own["restart"] = "false"
    options = read_options(table=table, file_name=str(config_file), environ=os.environ, typed=own)
    # Before anything that takes time: the commonest mistake is that the server runs already.
    with listen(options.server.host, options.server.port) as listener:
        manifest = host.manifest()
        spec = EngineSpec(
            model=model,
            texts=engine,
            config_file=file,
            given_by="the command line",
            plugins=tuple(plugin for plugin, _, _ in manifest),
            manifest=manifest,
        )
        loaded = spec.load(host)
        name = options.server.served_model_name or loaded.config.model.model
        configure_logs(options.server)
        replicas, texts = loaded.config.parallel.data_parallel_size, Texts(loaded.tokenizer)
        asyncio.run(run(spec, options, model=name, texts=texts, replicas=replicas, listener=listener))


def _divide_typed(typed: Mapping[str, str | None], settings: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """What was typed for the server, and for the engine.

    Raises:
        click.BadParameter: a --set is not of the form KEY=VALUE.
    """
    serve = serve_schema()
    own: dict[str, str] = {}
    engine: dict[str, str] = {}
    for variable, text in typed.items():
        name = variable.removeprefix("key_").replace("__", ".")
        if text is not None:
            (own if name in serve.by_name else engine)[name] = text
    for name, text in read_settings(settings):
        name = name.removeprefix(f"{TITLE}.")
        (own if name in serve.by_name else engine)[name] = text
    return own, engine


def _common_options() -> list[click.Parameter]:
    return [
        click.Option(["--model"], help="Checkpoint: a directory, or a name such as tiny/llada."),
        *config_arguments("those of the server below 'serve:'"),
        click.Option(["--no-restart"], is_flag=True, help="Leave an engine that died dead; short for --restart false."),
    ]


def _make_command() -> click.Command:
    callback: Any = click.pass_obj(_run)
    return GroupedCommand(
        "serve",
        callback=callback,
        help=_run.__doc__,
        params=[*_common_options(), *_key_options()],
        context_settings={"max_content_width": _WIDEST_HELP},
    )


serve = _make_command()
