"""What `config explain` and `config schema` say about keys."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, get_args, get_origin

import attrs

from diffulex_core.config.convert import CONVERTER, choices_of, is_optional
from diffulex_core.config.engine_config import EngineConfig
from diffulex_core.config.keys import Origin
from diffulex_core.config.schema import (
    KeySpec,
    Schema,
    Section,
    added_sizes,
    build_schema,
    core_sections,
    plugin_sections,
)

if TYPE_CHECKING:
    from diffulex_core.host import Host

_TYPE_NAMES: Mapping[type, tuple[str, str]] = types.MappingProxyType(
    {bool: ("bool", "boolean"), int: ("int", "integer"), float: ("float", "number"), str: ("str", "string")}
)


@attrs.frozen(kw_only=True)
class Explained:
    """One key of a resolved configuration.

    Attributes:
        spec: the key.
        value: its value.
        origin: who set it.
        unused: the strategy does not consume it.
    """

    spec: KeySpec
    value: Any
    origin: Origin
    unused: bool

    def as_json(self) -> dict[str, Any]:
        """The row as JSON values."""
        return {
            "key": self.spec.name,
            "value": CONVERTER.unstructure(self.value),
            "default": CONVERTER.unstructure(self.spec.default),
            "section": self.spec.section,
            "owner": self.spec.owner,
            "set_by": {"source": self.origin.source, "detail": self.origin.detail},
            "unused": self.unused,
            "built": self.spec.info.built,
            "help": self.spec.info.help,
        }


def explain(config: EngineConfig) -> tuple[Explained, ...]:
    """Every key of a configuration, in the schema's order."""
    return tuple(
        Explained(
            spec=spec, value=config.value(spec), origin=config.origins[spec.name], unused=spec.name in config.unused
        )
        for spec in config.schema()
    )


def installed_sections(host: Host) -> tuple[Section, ...]:
    """The core's sections and those of every installed family and strategy, which cannot all be selected at once."""
    sections = list(core_sections())
    for family_entry in host.models.entries():
        family = family_entry.descriptor
        if family.config_cls is not None:
            cls = host.load(family.config_cls, provenance=family_entry.provenance)
            sections += plugin_sections(family, cls, None, None)
    for strategy_entry in host.strategies.entries():
        strategy = strategy_entry.descriptor
        if strategy.config_cls is not None:
            cls = host.load(strategy.config_cls, provenance=strategy_entry.provenance)
            sections += plugin_sections(None, None, strategy, cls)
    return tuple(sections)


def installed_sizes(host: Host) -> Mapping[object, str]:
    """Block and page sizes that installed families and strategies add, and who does."""
    return added_sizes(host.models, host.strategies)


def json_schema(
    sections: Iterable[Section],
    sizes: Mapping[object, str] | None = None,
    tables: Mapping[str, Iterable[Section]] | None = None,
) -> dict[str, Any]:
    """JSON Schema of a config file: every key at the top, or nested under its section's name.

    Args:
        sections: of the engine's keys.
        sizes: block and page sizes that plugins allow (`installed_sizes`).
        tables: of plugins' commands, whose keys stand nowhere else (`table_sections`).
    """
    flat: dict[str, list[dict[str, Any]]] = {}
    nested: dict[str, Any] = {}
    for section in sections:
        schema = build_schema([section], sizes)
        properties = _properties(schema)
        for name, value in properties.items():
            flat.setdefault(name, []).append(value)
        for title in section.titles:
            known = nested.get(title, {}).get("properties", {})
            nested[title] = {"type": "object", "properties": {**known, **properties}, "additionalProperties": False}
    properties = {name: values[0] if len(values) == 1 else {"anyOf": values} for name, values in flat.items()}
    for title, own in (tables or {}).items():
        nested.setdefault(
            title, {"type": "object", "properties": _properties(build_schema(own)), "additionalProperties": False}
        )
    for title, value in nested.items():
        properties[title] = {"anyOf": [properties[title], value]} if title in properties else value
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "diffulex configuration",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }


def type_name(kind: Any) -> str:
    """A type in words."""
    if is_optional(kind):
        return " or ".join("null" if part is type(None) else type_name(part) for part in get_args(kind))
    if get_origin(kind) is tuple:
        return f"list of {type_name(get_args(kind)[0])}"
    if choices_of(kind):
        return type_name(type(choices_of(kind)[0]))
    return _TYPE_NAMES[kind][0] if kind in _TYPE_NAMES else str(kind)


def allowed(spec: KeySpec) -> str:
    """Choices and bounds in words; empty when the type says it all."""
    info = spec.info
    choices = info.choices or choices_of(spec.kind)
    if choices:
        return ", ".join(map(str, choices))
    parts = [
        info.form,
        f">= {info.minimum:.12g}" if info.minimum is not None else "",
        f"> {info.above:.12g}" if info.above is not None else "",
        f"<= {info.maximum:.12g}" if info.maximum is not None else "",
    ]
    return ", ".join(part for part in parts if part)


def not_built(spec: KeySpec) -> str:
    """What this version makes of a key whose machinery does not exist yet; empty for the others."""
    info = spec.info
    if info.built:
        return ""
    works = json.dumps(info.honoured[0] if info.honoured else spec.default)
    return f"Works as {works}: {info.why}." if info.why else f"Not built yet: works as {works}."


def _properties(schema: Schema) -> dict[str, Any]:
    properties = {}
    for spec in schema:
        value = _value_schema(spec)
        names = [name for name in (spec.name, *spec.other_names) if "." not in name]
        properties.update(dict.fromkeys(names, value))
    for name, leaves in schema.groups.items():
        within: dict[str, Any] = {leaf: _value_schema(spec) for leaf, spec in leaves.items()}
        for spec in leaves.values():
            for table, leaf in (parts[1:] for other in spec.other_names if len(parts := other.split(".")) == 3):
                within.setdefault(table, _table({}))["properties"][leaf] = _value_schema(spec)
        properties[name] = _table(within)
    return properties


def _table(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _value_schema(spec: KeySpec) -> dict[str, Any]:
    described: dict[str, Any] = {"description": spec.info.help, "default": CONVERTER.unstructure(spec.default)}
    kind = spec.kind
    if get_origin(kind) is tuple:
        return {**described, "type": "array", "items": {**_json_type(get_args(kind)[0]), **_bounds(spec)}}
    value = {**_json_type(kind), **_bounds(spec)}
    if spec.info.choices:
        value = {"enum": [*spec.info.choices]}
    return {**described, **value}


def _json_type(kind: Any) -> dict[str, Any]:
    choices = choices_of(kind)
    if choices:
        return {"enum": [*choices, *([None] if is_optional(kind) else [])]}
    if get_origin(kind) in (typing.Union, types.UnionType):
        return {"type": [_json_type(part)["type"] if part is not type(None) else "null" for part in get_args(kind)]}
    return {"type": _TYPE_NAMES[kind][1]} if kind in _TYPE_NAMES else {}


def _bounds(spec: KeySpec) -> dict[str, Any]:
    info = spec.info
    found = {
        "minimum": info.minimum,
        "maximum": info.maximum,
        "exclusiveMinimum": info.above,
        "pattern": None if info.pattern is None else f"^({info.pattern})$",
    }
    return {name: value for name, value in found.items() if value is not None}
