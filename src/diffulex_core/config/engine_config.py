"""The resolved configuration: frozen sections, the chosen family and strategy, and who set what."""

from __future__ import annotations

import operator
import pkgutil
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, cast

import attrs

from diffulex_core.config.convert import CONVERTER
from diffulex_core.config.keys import Origin
from diffulex_core.config.schema import (
    FAMILY,
    STRATEGY,
    KeySpec,
    Schema,
    added_sizes,
    build_schema,
    core_sections,
    plugin_sections,
)
from diffulex_core.config.sections import (
    CORE_SECTIONS,
    AttentionSection,
    CacheSection,
    DecodingSection,
    LoraSection,
    ModelSection,
    ParallelSection,
    RuntimeSection,
    ScheduleSection,
)
from diffulex_core.descriptors import DecodingStrategy, ModelFamily


def _frozen(value: Mapping[str, Any]) -> Mapping[str, Any]:
    return MappingProxyType(dict(value))


@attrs.frozen(kw_only=True)
class EngineConfig:
    """Everything that an engine is assembled from. Two are equal when they mean the same, whoever set it.

    Attributes:
        model, decoding, schedule, cache, parallel, attention, runtime, lora: the core's sections.
        family, strategy: the chosen descriptors.
        family_options, strategy_options: instances of their `config_cls`, None where they have none. A strategy that
            shares its class with the family shares the instance.
        sampling_defaults: arguments of `SamplingParams` that the checkpoint recommends.
        origins: public key name -> who set its value.
        warnings: what the user should know, one sentence each.
        unused: names of the keys that the strategy does not consume: decoding thresholds, and keys of modes that are
            not selected.
    """

    model: ModelSection
    decoding: DecodingSection
    schedule: ScheduleSection
    cache: CacheSection
    parallel: ParallelSection
    attention: AttentionSection
    runtime: RuntimeSection
    lora: LoraSection
    family: ModelFamily
    strategy: DecodingStrategy
    family_options: Any = None
    strategy_options: Any = None
    sampling_defaults: Mapping[str, Any] = attrs.field(factory=dict, converter=_frozen, hash=False)
    origins: Mapping[str, Origin] = attrs.field(factory=dict, converter=_frozen, eq=False)
    warnings: tuple[str, ...] = attrs.field(default=(), eq=False)
    unused: tuple[str, ...] = attrs.field(default=(), eq=False)

    def schema(self) -> Schema:
        """The keys of this choice of family and strategy.

        Raises:
            PluginError: an option class is not usable.
        """
        options = _class_of(self.family_options), _class_of(self.strategy_options)
        own = plugin_sections(self.family, options[0], self.strategy, options[1])
        return build_schema([*core_sections(), *own], added_sizes([self.family], [self.strategy]))

    def value(self, spec: KeySpec) -> Any:
        """The value of one key of `schema()`."""
        owner = {FAMILY: self.family_options, STRATEGY: self.strategy_options}.get(spec.section)
        if owner is None:
            owner = operator.attrgetter(spec.section)(self)
        return operator.attrgetter(".".join(spec.path))(owner)

    def flat(self) -> dict[str, Any]:
        """Every key's public name and value. Given to `resolve` again, they yield an equal configuration."""
        return {spec.name: self.value(spec) for spec in self.schema()}

    def __reduce__(self) -> tuple[Callable[[Mapping[str, Any]], EngineConfig], tuple[dict[str, Any]]]:
        return structure, (unstructure(self),)


def unstructure(config: EngineConfig) -> dict[str, Any]:
    """The configuration as plain dicts, lists, texts and numbers."""
    data: dict[str, Any] = {name: CONVERTER.unstructure(operator.attrgetter(name)(config)) for name, _ in CORE_SECTIONS}
    data["family"], data["strategy"] = CONVERTER.unstructure(config.family), CONVERTER.unstructure(config.strategy)
    for name, options in (("family_options", config.family_options), ("strategy_options", config.strategy_options)):
        data[name] = None if options is None else CONVERTER.unstructure(options)
    data["sampling_defaults"] = dict(config.sampling_defaults)
    data["origins"] = {name: CONVERTER.unstructure(origin) for name, origin in config.origins.items()}
    data["warnings"], data["unused"] = list(config.warnings), list(config.unused)
    return data


def structure(data: Mapping[str, Any]) -> EngineConfig:
    """The inverse of `unstructure`. Imports the modules of the option classes; consults no plugin registry."""
    parts: dict[str, Any] = {name: CONVERTER.structure(data[name], cls) for name, cls in CORE_SECTIONS}
    family = CONVERTER.structure(data["family"], ModelFamily)
    strategy = CONVERTER.structure(data["strategy"], DecodingStrategy)
    family_options = _structure_options(family.config_cls, data["family_options"])
    shared = strategy.config_cls is not None and strategy.config_cls == family.config_cls
    strategy_options = family_options
    if not shared:
        strategy_options = _structure_options(strategy.config_cls, data["strategy_options"])
    return EngineConfig(
        **parts,
        family=family,
        strategy=strategy,
        family_options=family_options,
        strategy_options=strategy_options,
        sampling_defaults=data["sampling_defaults"],
        origins={name: CONVERTER.structure(origin, Origin) for name, origin in data["origins"].items()},
        warnings=tuple(data["warnings"]),
        unused=tuple(data["unused"]),
    )


def _structure_options(reference: str | None, data: Any) -> Any:
    if reference is None or data is None:
        return None
    cls = cast(type[Any], pkgutil.resolve_name(reference))
    attrs.resolve_types(cls)
    return CONVERTER.structure(data, cls)


def _class_of(options: Any) -> type | None:
    return None if options is None else type(options)
