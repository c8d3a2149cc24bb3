"""`diffulex chat`: talk to a server, or to a model without one."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from diffulex_core.host import Host
from diffulex_serve.arguments import config_arguments, read_settings
from diffulex_serve.chat.settings import KNOBS, Settings

if TYPE_CHECKING:
    from diffulex_serve.chat.links import Link

DEFAULT_URL = "http://127.0.0.1:8000"


def _run(
    host: Host,
    /,
    url: str | None,
    api_key: str | None,
    model: str | None,
    config_file: Path | None,
    settings: Sequence[str],
    **typed: str | None,
) -> None:
    """Talk to a running server, or, with --model, to an engine of this process.

    /help lists what can be typed. Sampling options that are not given are the checkpoint's recommendation.
    """
    own = model is not None or config_file is not None or bool(settings)
    if own and url is not None:
        raise click.UsageError("--url is for a server; --model, --config and --set are for an engine of this process.")

    from diffulex_serve.chat.session import Session
    from diffulex_serve.chat.terminal import ConsoleTerminal

    begin = _begin(config_file, typed)
    terminal = ConsoleTerminal()
    link = _inline(host, model, config_file, settings) if own else _remote(url or DEFAULT_URL, api_key)
    with asyncio.Runner() as runner:
        try:
            if own:
                terminal.note("Loading…")
            served = runner.run(link.meet())
            terminal.note(f"{served['model']} ({served['family']}, {served['strategy']}). /help lists the commands.")
            Session(link, terminal, runner, settings=begin).run()
        finally:
            runner.run(link.close())


def _begin(config_file: Path | None, typed: Mapping[str, str | None]) -> Settings:
    """The settings that a conversation begins with: what was typed, else what file and environment say.

    Raises:
        ConfigError, InvalidSamplingParams: a value cannot be used.
    """
    from diffulex_core.config import read_config_file
    from diffulex_serve.chat.options import TITLE
    from diffulex_serve.settings import divide, read_chat_options

    table, _ = divide(None if config_file is None else read_config_file(config_file), TITLE)
    options = read_chat_options(table=table, file_name=str(config_file), environ=os.environ)
    known = attrs.asdict(options)
    begin = Settings()
    for name, knob in KNOBS.items():
        value = known[knob.field]
        text = typed.get(name)
        if text is None and value is not None:
            text = str(value)
        begin = begin if text is None else begin.changed(name, text)
    return begin


def _remote(url: str, api_key: str | None) -> Link:
    from diffulex_serve.chat.links import RemoteLink

    return RemoteLink(url, api_key=api_key)


def _inline(host: Host, model: str | None, config_file: Path | None, settings: Sequence[str]) -> Link:
    from diffulex_core.config import read_config_file
    from diffulex_serve.chat.links import InlineLink
    from diffulex_serve.engine.inline import inline_client
    from diffulex_serve.engine.spec import EngineSpec
    from diffulex_serve.settings import divide
    from diffulex_serve.texts import Texts

    _, file = divide(None if config_file is None else read_config_file(config_file))
    manifest = host.manifest()
    spec = EngineSpec(
        model=model,
        texts=dict(read_settings(settings)),
        config_file=file,
        plugins=tuple(plugin for plugin, _, _ in manifest),
        manifest=manifest,
    )
    loaded = spec.load(host)
    return InlineLink(inline_client(spec.open), Texts(loaded.tokenizer), model=loaded.config.model.model)


def _options() -> list[click.Parameter]:
    return [
        click.Option(["--url"], help=f"Where the server is. [default: {DEFAULT_URL}, where no model is named]"),
        click.Option(
            ["--api-key"], envvar="DIFFULEX_SERVE__API_KEY", help="The server's key; better set in the environment."
        ),
        click.Option(["--model"], help="Checkpoint for an engine of this process: a directory, or a name."),
        *config_arguments("sampling options below 'chat:'"),
        *(
            click.Option(
                [f"--{knob.field.replace('_', '-')}", name],
                metavar="INTEGER" if knob.read is int else "NUMBER",
                help=f"{knob.help} As /{name}.",
            )
            for name, knob in KNOBS.items()
        ),
    ]


def _make_command() -> click.Command:
    callback: Any = click.pass_obj(_run)
    return click.Command("chat", callback=callback, help=_run.__doc__, params=_options())


chat = _make_command()
