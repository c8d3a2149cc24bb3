"""Checks of whole plugins: their configuration keys, configurations with their parts, and hooks that judge those."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from diffulex_core.compat import missing_capabilities
from diffulex_core.config.convert import CONVERTER
from diffulex_core.config.engine_config import EngineConfig, structure, unstructure
from diffulex_core.config.keys import KeyInfo, info_of
from diffulex_core.config.resolve import resolve
from diffulex_core.config.schema import build_schema, core_sections, plugin_sections
from diffulex_core.descriptors import DecodingStrategy, ModelFamily
from diffulex_core.errors import ConfigError, DiffulexError, PluginError
from diffulex_core.registry import Entry
from diffulex_core.testing.check import AnyCheck, CheckFailed, check
from diffulex_core.testing.effort import Effort
from diffulex_core.testing.engines import configured
from diffulex_core.testing.plugin_parts import entries_of, is_not_loaded, refuse
from diffulex_core.testing.reference.plugin import FAMILY
from diffulex_core.testing.subjects import FamilySubject, PluginSubject, StrategySubject

STRATEGY = "kit_blocks"
NO_KEY = "no_such_key_of_anybody"


def _option_classes(subject: PluginSubject) -> Iterator[tuple[str, ModelFamily | DecodingStrategy, type]]:
    """(owner, descriptor, class) of every `config_cls`."""
    for _, entry in entries_of(subject):
        descriptor = entry.descriptor
        if isinstance(descriptor, (ModelFamily, DecodingStrategy)) and descriptor.config_cls is not None:
            cls = subject.host.load(descriptor.config_cls, provenance=subject.record.provenance)
            yield f"{descriptor.name!r}, {descriptor.config_cls}", descriptor, cls


def _has_no_options(subject: PluginSubject) -> str | None:
    if (reason := is_not_loaded(subject)) is not None:
        return reason
    names = [entry.descriptor for _, entry in entries_of(subject)]
    own = [each for each in names if isinstance(each, (ModelFamily, DecodingStrategy)) and each.config_cls]
    return None if own else "it has no configuration keys of its own"


@check(PluginSubject, when=_has_no_options)
def check_plugin_options_are_frozen_values(subject: PluginSubject, effort: Effort) -> None:
    """A class of configuration keys is frozen, has a default for every key, and survives plain data.

    Keys do not collide with those of the core, and unknown ones are refused.

    Why: configurations are compared, hashed, pickled, written to files and shown by `diffulex config explain`.

    Fix: `@attrs.frozen(kw_only=True)` and one `key(default, "help")` for each field, with types that TOML can hold.
    """
    problems = []
    for owner, descriptor, cls in _option_classes(subject):
        if not attrs.has(cls):
            problems.append(f"{owner} is no attrs class")
            continue
        attrs.resolve_types(cls)
        fields = attrs.fields(cls)
        if bare := [field.name for field in fields if field.default is attrs.NOTHING]:
            problems.append(f"{owner}: without a default are {', '.join(bare)}")
            continue
        options, equal = cls(), cls()
        if options != equal:
            problems.append(f"{owner}: two instances with defaults differ")
        for field in fields:
            try:
                setattr(options, field.name, attrs.asdict(equal, recurse=False)[field.name])
            except attrs.exceptions.FrozenInstanceError:
                continue
            problems.append(f"{owner} is not frozen: {field.name} can be set")
        plain = CONVERTER.unstructure(equal)
        if CONVERTER.structure(plain, cls) != equal:
            problems.append(f"{owner} comes back from plain data as another value")
        if pickle.loads(pickle.dumps(equal)) != equal:
            problems.append(f"{owner} comes back from a pickle as another value")
        if _accepts_anything(cls, plain):
            problems.append(f"{owner} takes the unknown key {NO_KEY!r} without a word")
        match descriptor:
            case ModelFamily():
                sections = plugin_sections(descriptor, cls, None, None)
            case _:
                sections = plugin_sections(None, None, descriptor, cls)
        try:
            build_schema([*core_sections(), *sections])
        except PluginError as error:
            problems.append(f"{owner}: {error}")
    refuse(problems)


@check(PluginSubject, when=_has_no_options, level="recommended")
def check_plugin_keys_have_help(subject: PluginSubject, effort: Effort) -> None:
    """Every configuration key has a help text.

    Why: `diffulex config explain` and the command line show it, and users have nothing else to go by.

    Fix: declare the field as `key(default, "What it does.")`.
    """
    refuse(
        f"{owner}: {field.name} has no help text"
        for owner, _, cls in _option_classes(subject)
        if attrs.has(cls)
        for field in attrs.fields(cls)
        if isinstance(info := info_of(field), KeyInfo) and not info.help
    )


def _accepts_anything(cls: type, plain: Mapping[str, object]) -> bool:
    try:
        CONVERTER.structure({**plain, NO_KEY: 1}, cls)
    except Exception:  # noqa: BLE001 - however it refuses
        return False
    return True


def _configurations(subject: PluginSubject) -> Iterator[EngineConfig]:
    """Of engines that the plugin's families and strategies take part in, resolved without any checkpoint."""
    host = subject.host
    families = [entry for entry in host.models.entries() if entry.descriptor.tiny is not None]
    for _, entry in entries_of(subject):
        match entry.descriptor:
            case ModelFamily() if entry.descriptor.tiny is not None:
                pairs = [(entry, each) for each in host.strategies.entries()]
            case DecodingStrategy():
                pairs = [(each, entry) for each in families]
            case _:
                continue
        fitting = [
            (one, two) for one, two in pairs if not missing_capabilities(one.descriptor, _usual(two.descriptor)[1])
        ]
        # What the plugin brings itself is what it is made for.
        fitting.sort(key=lambda pair: pair[0].provenance != pair[1].provenance)
        for family, strategy in fitting[:1]:
            yield _resolved(subject, family, strategy)


def _usual(strategy: DecodingStrategy) -> tuple[str, DecodingStrategy]:
    """The mode that a strategy runs in where nobody says another, and its recipe there."""
    mode = str(strategy.forces.get("sampling_mode", "naive"))
    return mode, strategy.in_mode(mode)


def _resolved(
    subject: PluginSubject, family: Entry[ModelFamily], strategy: Entry[DecodingStrategy], **options: object
) -> EngineConfig:
    host = subject.host
    tiny = dict(host.load(family.descriptor.tiny or "", provenance=family.provenance))
    partner = FamilySubject(host=host, entry=family, config=tiny)

    def resolved(chosen: Mapping[str, Any]) -> EngineConfig:
        return resolve("kit", {**chosen, "device": "cpu"}, host=host, checkpoint=tiny, strict=True)

    return configured(
        partner,
        StrategySubject(host=host, entry=strategy, mode=_usual(strategy.descriptor)[0], partner=partner),
        options,
        resolved,
    )


@check(PluginSubject, when=is_not_loaded)
def check_plugin_configurations_round_trip(subject: PluginSubject, effort: Effort) -> None:
    """Configurations with its families and strategies come back equal from plain data and from pickles.

    An unknown key is refused by name.

    Why: worker processes get their configuration that way, and users misspell keys.

    Fix: keep options plain: numbers, texts, flags, tuples, Literals. Let descriptors hold nothing that cannot be
    written down.
    """
    problems = []
    for config in _configurations(subject):
        what = f"family {config.family.name!r} with strategy {config.strategy.name!r}"
        if structure(unstructure(config)) != config:
            problems.append(f"{what}: the configuration comes back from plain data as another one")
        if pickle.loads(pickle.dumps(config)) != config:
            problems.append(f"{what}: the configuration comes back from a pickle as another one")
        try:
            resolve("kit", {**config.flat(), NO_KEY: 1}, host=subject.host, strict=True)
        except ConfigError as error:
            if NO_KEY not in str(error):
                problems.append(f"{what}: the unknown key {NO_KEY!r} is not named by {error}")
        else:
            problems.append(f"{what}: the unknown key {NO_KEY!r} is accepted")
    refuse(problems)


@check(PluginSubject, when=is_not_loaded)
def check_plugin_hooks_leave_others_alone(subject: PluginSubject, effort: Effort) -> None:
    """Its validation and its observers neither raise nor object when an engine uses nothing of it.

    Why: hooks are called for every engine. One that looks for its own options without asking breaks all others.

    Fix: in `diffulex_validate_config` return `()` unless family or strategy are the plugin's own, and otherwise a list
    of sentences; in `diffulex_make_observer` return an `Observer` or None.
    """
    host = subject.host
    try:
        config = _resolved(subject, host.models.entry(FAMILY), host.strategies.entry(STRATEGY))
    except DiffulexError as error:
        raise CheckFailed(f"the kit's own family cannot be configured beside it: {error}") from error
    for origin, call in host.callers("diffulex_validate_config"):
        if origin == subject.record.provenance:
            for objections in call(config=config):
                if objections is None or isinstance(objections, str) or list(objections):
                    raise CheckFailed(f"diffulex_validate_config returns {objections!r} for an engine of others.")
    for origin, call in host.callers("diffulex_make_observer"):
        if origin == subject.record.provenance:
            call(config=config)


CHECKS: tuple[AnyCheck, ...] = (
    check_plugin_options_are_frozen_values,
    check_plugin_keys_have_help,
    check_plugin_configurations_round_trip,
    check_plugin_hooks_leave_others_alone,
)
