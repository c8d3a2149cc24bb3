"""Routes given keys to the schema, and keeps for each key the value of the strongest layer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import attrs

from diffulex_core.config.convert import ConversionError, convert, is_optional, shown
from diffulex_core.config.keys import Origin
from diffulex_core.config.layers import Given, expand_group
from diffulex_core.config.schema import KeySpec, Schema
from diffulex_core.config.unknown import explain_unknown

if TYPE_CHECKING:
    from diffulex_core.host import Host


@attrs.frozen(kw_only=True)
class Setting:
    """One key's value and who set it."""

    spec: KeySpec
    value: Any
    origin: Origin

    def problem(self, text: str) -> str:
        """A sentence about this value: what it is, who set it, who owns the key, and what to do."""
        return f"{self.spec.name} is {shown(self.value)} ({self.origin}; {self.spec.where}): {text}."


@attrs.define
class Report:
    """What is wrong and what the user should know, gathered while a configuration is resolved.

    `unusable` names the keys whose values cannot be read or are out of bounds; nothing more is concluded from them.
    """

    problems: list[str] = attrs.field(factory=list)
    warnings: list[str] = attrs.field(factory=list)
    unusable: set[str] = attrs.field(factory=set)

    def warn(self, text: str) -> None:
        """Add a warning once."""
        if text not in self.warnings:
            self.warnings.append(text)


def settle(layers: Iterable[Iterable[Given]], schema: Schema, host: Host | None, report: Report) -> dict[str, Setting]:
    """Every key's value, in the schema's order: the last layer that gives it, else its default.

    Args:
        layers: weakest first.
        schema: the keys.
        host: explains unknown names; None keeps silent about them.
        report: takes what is wrong. Keys whose value cannot be read are marked unusable and keep their default.
    """
    wanted: dict[str, Setting] = {}
    for layer in layers:
        wanted.update(_settle_layer(layer, schema, host, report))
    settings = {}
    for spec in schema:
        setting = wanted.get(spec.name)
        settings[spec.name] = (
            Setting(spec=spec, value=spec.default, origin=Origin()) if setting is None else _read(setting, report)
        )
    return settings


def given_text(layers: Iterable[Iterable[Given]], name: str, schema: Schema) -> tuple[str | None, Origin]:
    """The text that the strongest layer gives for one key and who gave it; None when nobody gives a text."""
    setting = settle(layers, schema, None, Report())[name]
    return (setting.value or None), setting.origin


def _read(setting: Setting, report: Report) -> Setting:
    try:
        return attrs.evolve(setting, value=convert(setting.value, setting.spec.kind))
    except ConversionError as error:
        report.problems.append(setting.problem(str(error)))
        report.unusable.add(setting.spec.name)
        return attrs.evolve(setting, value=setting.spec.default)


def _settle_layer(layer: Iterable[Given], schema: Schema, host: Host | None, report: Report) -> dict[str, Setting]:
    plain, grouped = [], []
    for given in layer:
        name = given.name
        if name in schema.groups:
            parts = expand_group(given, schema.groups[name])
            if parts is None:
                names = ", ".join(schema.groups[name])
                report.problems.append(
                    f"{name} is {shown(given.value)} ({given.origin}): give a table with keys of {names}."
                )
                continue
            grouped += [attrs.evolve(part, strict=True) for part in parts]
        else:
            plain.append(given)
    found: dict[str, Setting] = {}
    for given in grouped:
        _place(given, schema, host, report, found)
    apart: dict[str, Setting] = {}
    for given in plain:
        _place(given, schema, host, report, apart)
    return found | apart


def _place(given: Given, schema: Schema, host: Host | None, report: Report, found: dict[str, Setting]) -> None:
    spec = schema.by_name.get(given.name)
    sections = None if given.title is None else schema.titles.get(given.title, frozenset())
    if spec is None or (sections is not None and not sections):
        if host is not None:
            unknown = explain_unknown(given, schema, host)
            if unknown.fatal or (given.strict and not unknown.harmless):
                report.problems.append(unknown.text)
            else:
                report.warn(unknown.text)
        return
    if sections is not None and spec.section not in sections:
        report.problems.append(
            f"{given.name} ({given.origin}) stands in section {given.title}, but belongs to section {spec.section}; "
            "move it there."
        )
        return
    if given.value is None and not is_optional(spec.kind):
        return
    setting = Setting(spec=spec, value=given.value, origin=given.origin)
    other = found.get(spec.name)
    if other is not None and other.value != given.value:
        report.problems.append(
            setting.problem(f"the same place also gives {shown(other.value)} under another of its names; give one")
        )
    found[spec.name] = setting
