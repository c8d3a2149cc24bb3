"""Every key of an engine: those of the core's sections and those of the selected family and strategy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import attrs

from diffulex_core.config.keys import GroupInfo, KeyInfo, info_of
from diffulex_core.config.sections import CORE_SECTIONS, SIZES
from diffulex_core.descriptors import DecodingStrategy, ModelFamily
from diffulex_core.errors import PluginError

# attrs types its Factory class as a function.
_FACTORY: Any = attrs.Factory

FAMILY = "family"
STRATEGY = "strategy"


@attrs.frozen(kw_only=True)
class KeySpec:
    """One key.

    Attributes:
        name: the public name.
        section: attribute of `EngineConfig` that holds it, "family" or "strategy" for a plugin's own.
        owner: who declares it, in words.
        path: field of the section, and attribute within it for keys of a group.
        kind: its type.
        default: its default.
        info: help, bounds and the rest; its choices include those that plugins add.
        added: choices that plugins add, and which of them does.
    """

    name: str
    section: str
    owner: str
    path: tuple[str, ...]
    kind: Any = attrs.field(eq=False)
    default: object = attrs.field(eq=False)
    info: KeyInfo = attrs.field(eq=False)
    added: Mapping[object, str] = attrs.field(factory=dict, eq=False)

    @property
    def where(self) -> str:
        """Owner and section, for messages."""
        return f"core, section {self.section}" if self.owner == "core" else self.owner

    @property
    def other_names(self) -> tuple[str, ...]:
        """Every name but the public one under which the key may be given."""
        dotted = (".".join(self.path),) if len(self.path) > 1 else ()
        return tuple(name for name in (*self.info.aliases, *dotted) if name != self.name)


@attrs.frozen(kw_only=True)
class Schema:
    """The keys that may be given for one choice of family and strategy.

    Attributes:
        specs: all keys, in the order in which they are shown.
        by_name: public names and aliases.
        groups: name of a group -> its keys by attribute.
        titles: names under which a config file may nest keys -> the sections meant.
    """

    specs: tuple[KeySpec, ...]
    by_name: Mapping[str, KeySpec] = attrs.field(eq=False)
    groups: Mapping[str, Mapping[str, KeySpec]] = attrs.field(eq=False)
    titles: Mapping[str, frozenset[str]] = attrs.field(eq=False)

    def __iter__(self) -> Iterator[KeySpec]:
        return iter(self.specs)

    def closest(self, name: str) -> str | None:
        """The known name that a misspelt one resembles most."""
        matches = difflib.get_close_matches(name, [*self.by_name, *self.groups], n=1, cutoff=0.5)
        return matches[0] if matches else None


@attrs.frozen(kw_only=True)
class Section:
    """A class of keys: `name` as in `KeySpec.section`, its owner in words, the `titles` it has in config files."""

    name: str
    owner: str
    cls: type
    titles: tuple[str, ...]


def core_sections() -> tuple[Section, ...]:
    """The core's own sections."""
    return tuple(Section(name=name, owner="core", cls=cls, titles=(name,)) for name, cls in CORE_SECTIONS)


def plugin_sections(
    family: ModelFamily | None, family_cls: type | None, strategy: DecodingStrategy | None, strategy_cls: type | None
) -> tuple[Section, ...]:
    """The section classes of a family and a strategy, where they have some.

    A family and a strategy that share one class share its keys, which then belong to the family.
    """
    sections = []
    shared = family_cls is not None and family_cls is strategy_cls
    of_strategy = (STRATEGY, strategy.name, *strategy.aliases) if strategy is not None else ()
    if family is not None and family_cls is not None:
        titles = (FAMILY, family.name, *family.aliases, *(of_strategy if shared else ()))
        sections.append(Section(name=FAMILY, owner=f"model family '{family.name}'", cls=family_cls, titles=titles))
    if strategy is not None and strategy_cls is not None and not shared:
        owner = f"strategy '{strategy.name}'"
        sections.append(Section(name=STRATEGY, owner=owner, cls=strategy_cls, titles=of_strategy))
    return tuple(sections)


def added_sizes(families: Iterable[ModelFamily], strategies: Iterable[DecodingStrategy]) -> Mapping[object, str]:
    """Block and page sizes that descriptors allow besides the core's, and who does."""
    owners: list[tuple[str, ModelFamily | DecodingStrategy]] = [
        *((f"model family '{family.name}'", family) for family in families),
        *((f"strategy '{strategy.name}'", strategy) for strategy in strategies),
    ]
    found = {size: owner for owner, descriptor in reversed(owners) for size in descriptor.sizes if size not in SIZES}
    return {size: found[size] for size in sorted(found)}


def build_schema(sections: Iterable[Section], sizes: Mapping[object, str] | None = None) -> Schema:
    """The keys of the sections together.

    Args:
        sections: in the order in which they are shown.
        sizes: more choices for block and page sizes, and who allows them (`added_sizes`).
    Raises:
        PluginError: two sections declare the same name, or a key has no default.
    """
    titles: dict[str, frozenset[str]] = {}
    specs: list[KeySpec] = []
    by_name: dict[str, KeySpec] = {}
    groups: dict[str, Mapping[str, KeySpec]] = {}
    for section in sections:
        for title in section.titles:
            titles[title] = titles.get(title, frozenset()) | {section.name}
        attrs.resolve_types(section.cls)
        for field in attrs.fields(section.cls):
            info = info_of(field)
            if isinstance(info, GroupInfo):
                leaves = dict(_leaves(field, info, section))
                groups[field.name] = leaves
                found: Iterable[KeySpec] = leaves.values()
            else:
                found = [_spec(field.name, (field.name,), field, info, section)]
            for spec in found:
                if sizes and spec.info.sized:
                    info = attrs.evolve(spec.info, choices=(*spec.info.choices, *sizes))
                    spec = attrs.evolve(spec, info=info, added=sizes)
                specs.append(spec)
                for name in (spec.name, *spec.other_names):
                    if by_name.get(name, spec) != spec:
                        raise PluginError(
                            f"The configuration key '{name}' is declared by {by_name[name].owner} and by {spec.owner}; "
                            "rename it in one of them."
                        )
                    by_name[name] = spec
    return Schema(specs=tuple(specs), by_name=by_name, groups=groups, titles=titles)


def _leaves(field: attrs.Attribute[Any], info: GroupInfo, section: Section) -> Iterator[tuple[str, KeySpec]]:
    group = cast(type[attrs.AttrsInstance], field.type)
    attrs.resolve_types(group)
    for leaf in attrs.fields(group):
        leaf_info = info.leaves.get(leaf.name) or info_of(leaf)
        if isinstance(leaf_info, GroupInfo):
            raise PluginError(f"The configuration key '{field.name}.{leaf.name}' is a group in a group; flatten it.")
        name = f"{field.name}.{leaf.name}" if info.prefixed else leaf.name
        yield leaf.name, _spec(name, (field.name, leaf.name), leaf, leaf_info, section)


def _spec(name: str, path: tuple[str, ...], field: attrs.Attribute[Any], info: KeyInfo, section: Section) -> KeySpec:
    default = field.default
    if isinstance(default, _FACTORY):
        default = default.factory()
    if default is attrs.NOTHING:
        raise PluginError(f"The configuration key '{name}' of {section.owner} has no default; give it one.")
    return KeySpec(
        name=name, section=section.name, owner=section.owner, path=path, kind=field.type, default=default, info=info
    )
