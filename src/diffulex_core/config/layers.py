"""Where values come from: each layer as a list of given keys, in order of precedence."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import yaml

from diffulex_core.config.convert import Text, as_mapping
from diffulex_core.config.keys import Origin
from diffulex_core.config.schema import KeySpec, Schema
from diffulex_core.errors import ConfigError

ENVIRONMENT_PREFIX = "DIFFULEX_"


@attrs.frozen(kw_only=True)
class ConfigFile:
    """A parsed config file.

    Attributes:
        name: its path, for messages.
        values: its keys, nested by section or flat.
    """

    name: str
    values: Mapping[str, Any] = attrs.field(hash=False)


@attrs.frozen(kw_only=True)
class Given:
    """One key as somebody gave it.

    Attributes:
        name: as written; "group.attribute" reaches into a group.
        value: as written.
        origin: who gave it.
        title: the section that it was nested in, None where it stands alone.
        strict: whether an unknown name is a problem rather than a warning.
    """

    name: str
    value: Any
    origin: Origin
    title: str | None = None
    strict: bool = False


def read_config_file(path: Path) -> ConfigFile:
    """Read a YAML, TOML or JSON file.

    Raises:
        ConfigError: it is missing, of another kind, damaged, or not a table of keys.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError([f"The config file {path} cannot be read: {error.strerror}. Check the path."]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"The config file {path} is not UTF-8 text ({error.reason}). Convert it."]) from error
    try:
        match path.suffix.lower():
            case ".toml":
                values: object = tomllib.loads(text)
            case ".json":
                values = json.loads(text)
            case ".yaml" | ".yml":
                values = yaml.safe_load(text)
            case suffix:
                raise ConfigError(
                    [f"The config file {path} ends in '{suffix}'; name it .yaml, .toml or .json, as what it holds."]
                )
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError([f"The config file {path} cannot be parsed: {error}"]) from error
    if values is None:
        values = {}
    if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
        raise ConfigError(
            [f"The config file {path} does not hold keys and values; write 'page_size: 16', for example."]
        )
    return ConfigFile(name=str(path), values=values)


def user_layers(
    schema: Schema,
    options: Mapping[str, object],
    *,
    config_file: ConfigFile | None,
    environ: Mapping[str, str] | None,
    strict: bool,
    given_by: str,
) -> list[list[Given]]:
    """What a person asked for, weakest layer first: config file, environment, options."""
    return [
        [] if config_file is None else from_file(config_file, schema.titles),
        from_environment(environ or {}, strict=strict),
        from_options(options, detail=given_by, strict=strict),
    ]


def from_options(options: Mapping[str, object], *, detail: str, strict: bool) -> list[Given]:
    """Keyword arguments or command-line settings."""
    origin = Origin(source="user", detail=detail)
    return [Given(name=name, value=value, origin=origin, strict=strict) for name, value in options.items()]


def from_environment(environ: Mapping[str, str], *, strict: bool) -> list[Given]:
    """`DIFFULEX_<SECTION>__<KEY>` variables; further double underscores reach into groups."""
    given = []
    for variable, text in sorted(environ.items()):
        section, separator, name = variable.removeprefix(ENVIRONMENT_PREFIX).partition("__")
        if variable.startswith(ENVIRONMENT_PREFIX) and separator:
            origin = Origin(source="environment", detail=variable)
            name = name.lower().replace("__", ".")
            given.append(Given(name=name, value=Text(text), origin=origin, title=section.lower(), strict=strict))
    return given


def from_file(file: ConfigFile, titles: Iterable[str]) -> list[Given]:
    """A config file's keys. A table under a section's name nests; everything else stands alone. Always strict."""
    origin = Origin(source="file", detail=file.name)
    known = frozenset(titles)
    given = []
    for name, value in file.values.items():
        if name in known and isinstance(value, Mapping):
            given += [
                Given(name=str(inner), value=entry, origin=origin, title=name, strict=True)
                for inner, entry in value.items()
            ]
        else:
            given.append(Given(name=name, value=value, origin=origin, strict=True))
    return given


def from_defaults(defaults: Mapping[str, object], origin: Origin) -> list[Given]:
    """What a family or a strategy sets."""
    return [Given(name=name, value=value, origin=origin, strict=True) for name, value in defaults.items()]


def from_generation_config(generation: Mapping[str, Any], schema: Schema) -> list[Given]:
    """The keys that a checkpoint's generation_config.json may set, by name, or in a group's table."""
    origin = Origin(source="checkpoint", detail="generation_config.json")
    given = []
    for group, leaves in schema.groups.items():
        table = generation.get(group)
        if isinstance(table, Mapping):
            value = {leaf: table.get(leaf) for leaf, spec in leaves.items() if spec.info.generation_config}
            given.append(Given(name=group, value=value, origin=origin))
    for spec in schema:
        for path in spec.info.generation_config:
            value = _look_up(generation, path)
            if value is not None:
                given.append(Given(name=spec.name, value=value, origin=origin))
                break
    return given


def _look_up(data: Mapping[str, Any], path: str) -> Any:
    value: Any = data
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def expand_group(given: Given, leaves: Mapping[str, KeySpec]) -> Iterator[Given] | None:
    """The keys of a group that was given as one value, or None when it is no table of keys."""
    if given.value is None:
        return iter(())
    table = as_mapping(given.value)
    if table is None:
        return None
    entries = _flattened(table, _tables_within(leaves))
    return (attrs.evolve(given, name=f"{given.name}.{leaf}", value=value) for leaf, value in entries)


def _tables_within(leaves: Mapping[str, KeySpec]) -> frozenset[str]:
    """What keys of a group are also gathered under, as `schedule` in the alias `profiler_config.schedule.wait`."""
    names = (name.split(".") for spec in leaves.values() for name in spec.other_names)
    return frozenset(parts[1] for parts in names if len(parts) > 2)


def _flattened(table: Mapping[str, object], tables: Collection[str]) -> Iterator[tuple[str, object]]:
    for leaf, value in table.items():
        inner = as_mapping(value) if leaf in tables else None
        if inner is None:
            yield leaf, value
        else:
            yield from ((f"{leaf}.{name}", part) for name, part in inner.items())
