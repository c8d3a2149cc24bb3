"""Reading the keys of the commands: tables of a config file, `DIFFULEX_SERVE__...` variables, and the command line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import attrs

from diffulex_core.config import ConfigFile, Origin, Schema, Text
from diffulex_core.config.checks import check_values
from diffulex_core.config.describe import Explained
from diffulex_core.config.layers import Given, from_environment
from diffulex_core.config.schema import Section, build_schema
from diffulex_core.config.settle import Report, Setting, settle
from diffulex_core.plugin import ConfigError
from diffulex_serve.chat.options import TITLE as CHAT, ChatOptions
from diffulex_serve.options import SECRETS, TITLE, ServeOptions

_PLAIN_KEY = re.compile(r"[!-~]+")


def serve_sections() -> tuple[Section, ...]:
    """The server's sections, as the core describes its own."""
    attrs.resolve_types(ServeOptions)
    return tuple(
        Section(name=field.name, owner="diffulex-serve", cls=field.type, titles=(TITLE,))
        for field in attrs.fields(ServeOptions)
        if field.type is not None and attrs.has(field.type)
    )


def serve_schema() -> Schema:
    """The server's keys."""
    return build_schema(serve_sections())


def divide(file: ConfigFile | None, title: str = TITLE) -> tuple[Mapping[str, Any], ConfigFile | None]:
    """A command's table of a config file, and the file without it.

    Raises:
        ConfigError: it is no table.
    """
    if file is None or title not in file.values:
        return {}, file
    table = file.values[title]
    if not isinstance(table, Mapping):
        raise ConfigError([f"{title} in {file.name} is {table!r}; write a table of keys, such as 'port: 8000', below."])
    rest = {name: value for name, value in file.values.items() if name != title}
    return table, attrs.evolve(file, values=rest)


def read_options(
    *, table: Mapping[str, Any], file_name: str, environ: Mapping[str, str], typed: Mapping[str, str]
) -> ServeOptions:
    """The server's keys; the command line is stronger than the environment, and that than the file.

    Args:
        table: keys of the config file's `serve` table, and `file_name` is what messages call the file.
        environ: variables; those that begin with `DIFFULEX_SERVE__` count.
        typed: texts of the command line, by key.
    Raises:
        ConfigError: keys or values are wrong; all problems are listed.
    """
    settings = _settled(serve_schema(), TITLE, table, file_name, environ, typed)
    key, text = settings["api_key"], typed.get("api_key", environ.get("DIFFULEX_SERVE__API_KEY"))
    # What is empty is no key elsewhere; here it is a mistake that would let everybody in.
    if (text is not None and not text.strip()) or (key.value is not None and not _PLAIN_KEY.fullmatch(key.value)):
        problem = "is empty or has more than printable ASCII without spaces; leave it out, or take another"
        raise ConfigError([f"api_key ({key.origin}) {problem}."])
    parts = {}
    for section in serve_sections():
        values = {name: each.value for name, each in settings.items() if each.spec.section == section.name}
        parts[section.name] = section.cls(**values)
    return ServeOptions(**parts, origins={name: each.origin for name, each in settings.items()})


def read_chat_options(*, table: Mapping[str, Any], file_name: str, environ: Mapping[str, str]) -> ChatOptions:
    """The keys of the `chat` table; arguments and errors are those of `read_options`."""
    section = Section(name=CHAT, owner="diffulex-serve", cls=ChatOptions, titles=(CHAT,))
    settings = _settled(build_schema([section]), CHAT, table, file_name, environ, {})
    return ChatOptions(**{name: each.value for name, each in settings.items()})


def _settled(
    schema: Schema,
    title: str,
    table: Mapping[str, Any],
    file_name: str,
    environ: Mapping[str, str],
    typed: Mapping[str, str],
) -> dict[str, Setting]:
    """The value of every key of a command.

    Raises:
        ConfigError: keys or values are wrong; all problems are listed.
    """
    of_file, of_user = Origin(source="file", detail=file_name), Origin(source="user", detail="the command line")
    layers = [
        [Given(name=str(name), value=value, origin=of_file, title=title) for name, value in table.items()],
        [given for given in from_environment(environ, strict=True) if given.title == title],
        [Given(name=name, value=Text(text), origin=of_user) for name, text in typed.items()],
    ]
    report = Report()
    for layer in layers:
        for given in layer:
            if given.name not in schema.by_name:
                closest = schema.closest(given.name)
                advice = f"Did you mean {closest}?" if closest else f"`diffulex {title} --help` lists all keys."
                report.problems.append(f"{given.name} ({given.origin}) is unknown: {advice}")
    settings = settle(layers, schema, None, report)
    check_values(settings, report)
    if report.problems:
        raise ConfigError(report.problems)
    return settings


def explain_options(options: ServeOptions) -> list[dict[str, Any]]:
    """Every key of the server as `diffulex config explain --json` tells an engine's; secrets are not told."""
    sections = attrs.asdict(options, filter=lambda field, _: field.name != "origins")
    rows = []
    for spec in serve_schema():
        value = sections[spec.section][spec.name]
        secret = spec.name in SECRETS and value is not None
        rows.append(
            Explained(
                spec=spec,
                value="(set)" if secret else value,
                origin=options.origins.get(spec.name, Origin()),
                unused=False,
            ).as_json()
        )
    return rows
