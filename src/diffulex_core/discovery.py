"""Finding plugins and reading one: from an entry point to checked hooks and descriptors."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any, get_args

import attrs
import pluggy

from diffulex_core import __version__, builtin, hookspecs
from diffulex_core.descriptors import AttentionBackendPlugin, Component, ComponentKind, DecodingStrategy, ModelFamily
from diffulex_core.errors import PluginError
from diffulex_core.registry import NotLoaded, Provenance, Registry, did_you_mean

PREFIX = "diffulex_"
"""Functions of a plugin module whose name starts like this are hooks; helpers are called something else."""

HOOKS = tuple(name for name, value in vars(hookspecs).items() if inspect.isfunction(value) and name.startswith(PREFIX))
"""The names of all hooks, in the order in which `hookspecs` documents them."""

CORE = Provenance(plugin="core", dist="diffulex-core", version=__version__, module=builtin.__name__, permanent=True)
"""Core's own plugin. It needs no entry point, so that core also works from a source tree."""

_VERSIONED = re.compile(r"diffulex\.v\d+")
"""Groups of this and other versions of the plugin API."""

Descriptor = ModelFamily | DecodingStrategy | AttentionBackendPlugin | Component

_REGISTRATIONS: tuple[tuple[str, type[Descriptor]], ...] = (
    ("diffulex_register_models", ModelFamily),
    ("diffulex_register_strategies", DecodingStrategy),
    ("diffulex_register_attention", AttentionBackendPlugin),
    ("diffulex_register_components", Component),
)


@attrs.frozen(kw_only=True, eq=False)
class Candidate:
    """A plugin before it is imported.

    Attributes:
        provenance: who declares it.
        module: the module itself, when it was given instead of found.
        group: of its entry point, which is the version of the API that it is written for.
    """

    provenance: Provenance
    module: ModuleType | None = None
    group: str = hookspecs.ENTRY_POINT_GROUP

    def imported(self) -> ModuleType:
        """The plugin's module. Whatever its import raises goes through."""
        if self.module is not None:
            return self.module
        if self.group != hookspecs.ENTRY_POINT_GROUP:
            raise PluginError(
                f"it is written for {self.group!r}, another version of the plugin API, and diffulex-core {__version__} "
                f"reads {hookspecs.ENTRY_POINT_GROUP!r}. Install a version of it, or of diffulex-core, for the other's."
            )
        path = self.provenance.module
        if not all(part.isidentifier() for part in path.split(".")):
            raise PluginError(f"the entry point names {path!r}; a plugin is a module, written as 'package.module'.")
        return import_module(path)


@attrs.frozen(kw_only=True)
class Contribution:
    """What one plugin brings: the hooks that it implements and its descriptors, in order of registration."""

    hooks: tuple[str, ...]
    descriptors: tuple[Descriptor, ...]


@attrs.frozen(kw_only=True)
class Registries:
    """One registry for each kind of descriptor."""

    models: Registry[ModelFamily]
    strategies: Registry[DecodingStrategy]
    attention: Registry[AttentionBackendPlugin]
    components: dict[str, Registry[Component]]

    @classmethod
    def empty(cls, not_loaded: list[NotLoaded]) -> Registries:
        """Empty registries whose unknown-name errors follow the list `not_loaded` as it grows."""
        return cls(
            models=Registry(kind="model family", not_loaded=not_loaded),
            strategies=Registry(kind="decoding strategy", not_loaded=not_loaded),
            attention=Registry(kind="attention backend", not_loaded=not_loaded),
            components={
                kind: Registry(kind=kind.replace("_", " "), not_loaded=not_loaded) for kind in get_args(ComponentKind)
            },
        )

    def by_kind(self) -> dict[str, Registry[Any]]:
        """All of them under the names of their kinds: "model", "strategy", "attention" and the kinds of components."""
        return {"model": self.models, "strategy": self.strategies, "attention": self.attention, **self.components}


def find_candidates(given: Iterable[ModuleType]) -> list[Candidate]:
    """Every installed plugin and the given modules, sorted by name and distribution; core's own is not among them."""
    points = entry_points()
    ours = points.select(group=hookspecs.ENTRY_POINT_GROUP)
    # A plugin may declare several versions of the API; of one that does not declare ours, users are told.
    others = [
        point
        for group in sorted(points.groups - {hookspecs.ENTRY_POINT_GROUP})
        if _VERSIONED.fullmatch(group)
        for point in points.select(group=group)
        if point.name not in ours.names
    ]
    found = [
        Candidate(provenance=_provenance(point, module), group=point.group)
        for point in (*ours, *{point.name: point for point in others}.values())
        if (module := point.value.partition("[")[0].strip()) != CORE.module
    ]
    found += [
        Candidate(
            provenance=Provenance(plugin=module.__name__, dist="given as a module", version="", module=module.__name__),
            module=module,
        )
        for module in given
    ]
    return sorted(found, key=lambda candidate: (candidate.provenance.plugin, candidate.provenance.dist))


def _provenance(point: EntryPoint, module: str) -> Provenance:
    # A half-removed distribution still has entry points, but no metadata and so neither name nor version.
    name: str | None = point.dist.name if point.dist else None
    version: str | None = point.dist.version if point.dist else None
    return Provenance(plugin=point.name, dist=name or "unknown distribution", version=version or "", module=module)


def new_manager() -> pluggy.PluginManager:
    """A pluggy manager that knows the hooks and no plugin."""
    manager = pluggy.PluginManager("diffulex")
    manager.add_hookspecs(hookspecs)
    return manager


def read_plugin(module: ModuleType, provenance: Provenance) -> Contribution:
    """Check a plugin's hooks and collect its descriptors, apart from all other plugins.

    Raises:
        PluginError: a hook does not exist or is not marked, or something that is no fitting descriptor was registered.
        pluggy.PluginValidationError: a hook has arguments that its specification does not have.
        Exception: whatever the plugin raises.
    """
    manager = new_manager()
    _check_hook_names(module, manager)
    manager.register(module, name=provenance.plugin)
    descriptors: list[Descriptor] = []
    for hook, expected in _REGISTRATIONS:
        collector = _Collector(hook=hook, expected=expected, accept=descriptors.append)
        manager.subset_hook_caller(hook, [])(register=collector)
        collector.close()
    hooks = [caller.name for caller in manager.get_hookcallers(module) or ()]
    return Contribution(hooks=tuple(sorted(hooks, key=HOOKS.index)), descriptors=tuple(descriptors))


def _check_hook_names(module: ModuleType, manager: pluggy.PluginManager) -> None:
    problems = []
    for name, value in vars(module).items():
        options = manager.parse_hookimpl_opts(module, name)
        hook = (options and options["specname"]) or name
        if options is None and inspect.isfunction(value) and name.startswith(PREFIX):
            problems.append(
                f"{name!r} is not marked with @hookimpl."
                if name in HOOKS
                else f"{name!r} is no hook, and names that start with {PREFIX!r} are kept for hooks. {_closest(name)}"
            )
        elif options is not None and hook not in HOOKS and not options["optionalhook"]:
            problems.append(f"{hook!r} is no hook. {_closest(hook)}")
    if problems:
        raise PluginError(" ".join(problems))


def _closest(name: str) -> str:
    return did_you_mean(name, HOOKS) or f"The hooks are {', '.join(HOOKS)}."


@attrs.define(kw_only=True)
class _Collector:
    """The `register` callable of one hook of one plugin."""

    hook: str
    expected: type[Descriptor]
    accept: Callable[[Descriptor], None]
    open: bool = True

    def __call__(self, descriptor: object, /) -> None:
        if not self.open:
            raise PluginError(f"{self.hook}: `register` was called after discovery; call it inside the hook.")
        if not isinstance(descriptor, self.expected):
            raise PluginError(
                f"{self.hook} registered a {type(descriptor).__name__}; it takes {self.expected.__name__} values."
            )
        if isinstance(descriptor, Component) and descriptor.kind not in get_args(ComponentKind):
            kinds = ", ".join(get_args(ComponentKind))
            raise PluginError(f"component {descriptor.name!r} has kind={descriptor.kind!r}; the kinds are {kinds}.")
        self.accept(descriptor)

    def close(self) -> None:
        self.open = False
