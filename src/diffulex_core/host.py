"""The host: which plugins take part, what they provide, and how broken ones are kept from spoiling the rest.

The rules depend on names only, never on the order of installation:

* Core's own plugin always loads, first, and nobody can take a name from it.
* A plugin that cannot be imported, raises, or breaks a rule of registration is quarantined whole: it leaves nothing
  behind, and every later unknown-name error names it and the reason.
* Two plugins with one entry name are both quarantined, because neither has the better claim.
* When two plugins claim one name or alias, the one that sorts second is quarantined, and the name itself answers with
  the conflict until the user disables one of the two: nobody wins silently.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType, ModuleType
from typing import Any, Literal

import attrs
import pluggy

from diffulex_core import builtin
from diffulex_core.descriptors import AttentionBackendPlugin, Component, DecodingStrategy, ModelFamily
from diffulex_core.discovery import (
    CORE,
    Candidate,
    Descriptor,
    Registries,
    find_candidates,
    new_manager,
    read_plugin,
)
from diffulex_core.errors import PluginError
from diffulex_core.refs import load_reference
from diffulex_core.registry import NotLoaded, Provenance, Registry, how_to_settle
from diffulex_core.selection import Selection

_log = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class Registered:
    """One descriptor of a plugin, as listings show it; `kind` is a key of `Host.registries`."""

    kind: str
    name: str
    aliases: tuple[str, ...]


@attrs.frozen(kw_only=True)
class PluginRecord:
    """What became of one plugin.

    Attributes:
        provenance: which plugin.
        status: whether it takes part.
        reason: why it does not; for a loaded plugin, the conflicts that cost it a name.
        hooks: hooks that it implements.
        registered: its descriptors.
        given: it was handed over as a module, so that another process cannot find it.
        imports_torch: torch was first imported while this plugin was loaded, which makes every start slow.
    """

    provenance: Provenance
    status: Literal["loaded", "quarantined", "disabled"]
    reason: str = ""
    hooks: tuple[str, ...] = ()
    registered: tuple[Registered, ...] = ()
    given: bool = False
    imports_torch: bool = attrs.field(default=False, eq=False)


@attrs.frozen(kw_only=True, hash=False)
class Host:
    """The plugins that one engine uses; made by `discover`. There is no global host.

    Attributes:
        models, strategies, attention: what plugins register, by name.
        components: one registry for each kind of component.
        not_loaded: installed plugins that do not take part.
        records: every installed plugin; see `plugins()`.
        registries: the same registries by kind: "model", "strategy", "attention" and the kinds of components.
    """

    models: Registry[ModelFamily] = attrs.field(repr=False)
    strategies: Registry[DecodingStrategy] = attrs.field(repr=False)
    attention: Registry[AttentionBackendPlugin] = attrs.field(repr=False)
    components: Mapping[str, Registry[Component]] = attrs.field(repr=False)
    not_loaded: tuple[NotLoaded, ...] = attrs.field(repr=False)
    records: tuple[PluginRecord, ...]
    registries: Mapping[str, Registry[Any]] = attrs.field(eq=False, repr=False)
    _manager: pluggy.PluginManager = attrs.field(eq=False, repr=False)

    @classmethod
    def discover(
        cls,
        plugins: Sequence[str] | None = None,
        environ: Mapping[str, str] | None = None,
        *,
        extra: Iterable[ModuleType] = (),
    ) -> Host:
        """Find and register the installed plugins, without importing torch.

        Args:
            plugins: use only these (names of plugins or distributions; core's own is always on); None leaves the
                choice to `DIFFULEX_PLUGINS`, or takes all. `DIFFULEX_DISABLE_PLUGINS` applies in any case.
            environ: the environment to read; None = the process's.
            extra: modules that are plugins without being installed. Worker processes cannot find them again.
        Raises:
            UnknownNameError: `plugins` or `DIFFULEX_PLUGINS` holds a name that no installed plugin has.
        """
        candidates = find_candidates(extra)
        selection = Selection.of(plugins, os.environ if environ is None else environ)
        selection.check([CORE, *(candidate.provenance for candidate in candidates)])
        draft = _Draft()
        draft.load(Candidate(provenance=CORE, module=builtin))
        enabled = []
        for candidate in candidates:
            refusal = selection.refusal(candidate.provenance, given=candidate.module is not None)
            if refusal:
                draft.leave_out(NotLoaded(provenance=candidate.provenance, status="disabled", reason=refusal))
            else:
                enabled.append(candidate)
        names = [CORE, *(candidate.provenance for candidate in enabled)]
        for candidate in enabled:
            draft.try_to_load(candidate, [other for other in names if other.plugin == candidate.provenance.plugin])
        return draft.finish(cls)

    @property
    def hooks(self) -> pluggy.HookRelay:
        """`hooks.diffulex_validate_config(config=...)` calls all loaded plugins and returns the list of results."""
        return self._manager.hook

    @property
    def quarantined(self) -> tuple[NotLoaded, ...]:
        """Plugins at fault, with exception type and text."""
        return tuple(plugin for plugin in self.not_loaded if plugin.status == "quarantined")

    def plugins(self) -> tuple[PluginRecord, ...]:
        """Every installed plugin: core's own, then sorted by name and distribution."""
        return self.records

    def manifest(self) -> tuple[tuple[str, str, str], ...]:
        """(plugin, dist, version) of the loaded plugins, sorted; equal in all processes of one engine."""
        loaded = (record.provenance for record in self.records if record.status == "loaded")
        return tuple(sorted((origin.plugin, origin.dist, origin.version) for origin in loaded))

    def callers(self, hook: str) -> tuple[tuple[Provenance, Callable[..., list[Any]]], ...]:
        """One hook, plugin by plugin, so that the caller knows whose result or exception it holds.

        Args:
            hook: name of the hook.
        Returns:
            The plugins that implement it, core first, each with a callable that takes the hook's arguments by keyword
            and returns the list of that plugin's results.
        """
        modules = dict(self._manager.list_name_plugin())
        return tuple(
            (
                record.provenance,
                self._manager.subset_hook_caller(
                    hook, [module for name, module in modules.items() if name != record.provenance.plugin]
                ),
            )
            for record in self.records
            if hook in record.hooks
        )

    def load(self, reference: str, *, provenance: Provenance) -> Any:
        """The code that a descriptor names, imported on first use. Raises as `load_reference` does."""
        return load_reference(reference, provenance=provenance)


@attrs.define(kw_only=True, eq=False)
class _Draft:
    """The state of one discovery; becomes a host when all plugins were visited."""

    not_loaded: list[NotLoaded] = attrs.field(factory=list)
    registries: Registries = attrs.field(init=False)
    records: list[PluginRecord] = attrs.field(factory=list)
    manager: pluggy.PluginManager = attrs.field(factory=new_manager)

    def __attrs_post_init__(self) -> None:
        self.registries = Registries.empty(self.not_loaded)

    def leave_out(self, plugin: NotLoaded) -> None:
        """Record a plugin that does not take part."""
        self.not_loaded.append(plugin)
        reason = f"{plugin.error}: {plugin.reason}" if plugin.error else plugin.reason
        self.records.append(PluginRecord(provenance=plugin.provenance, status=plugin.status, reason=reason))

    def try_to_load(self, candidate: Candidate, namesakes: Sequence[Provenance]) -> None:
        """Load a plugin or quarantine it; `namesakes` are all plugins of its name, itself included."""
        try:
            _refuse_namesakes(namesakes)
            self.load(candidate)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a stranger's code may raise anything
            plugin = NotLoaded(
                provenance=candidate.provenance,
                status="quarantined",
                error=type(error).__name__,
                reason=" ".join(str(error).split()),
            )
            self.leave_out(plugin)
            _log.warning("Plugin not loaded: %s", plugin)

    def load(self, candidate: Candidate) -> None:
        """Import a plugin and register all that it provides, or raise and change nothing but contested names."""
        torch_was_there = "torch" in sys.modules
        provenance = candidate.provenance
        module = candidate.imported()
        twin = self.manager.get_name(module)
        if twin is not None:
            raise PluginError(f"the module {module.__name__!r} is plugin {twin!r} already; declare it once.")
        contribution = read_plugin(module, provenance)
        self._refuse_clashes(contribution.descriptors, provenance)
        for descriptor in contribution.descriptors:
            _registry(self.registries, descriptor).add(descriptor, provenance)
        self.manager.register(module, name=provenance.plugin)
        imports_torch = not torch_was_there and "torch" in sys.modules
        self.records.append(
            PluginRecord(
                provenance=provenance,
                status="loaded",
                hooks=contribution.hooks,
                given=candidate.module is not None and not provenance.permanent,
                imports_torch=imports_torch,
            )
        )

    def _refuse_clashes(self, descriptors: Sequence[Descriptor], provenance: Provenance) -> None:
        alone = Registries.empty([])
        for descriptor in descriptors:
            _registry(alone, descriptor).add(descriptor, provenance)
        texts = []
        for descriptor in descriptors:
            registry = _registry(self.registries, descriptor)
            for clash in registry.clashes(descriptor, provenance):
                registry.contest(clash)
                texts.append(clash.text)
        if texts:
            raise PluginError(" ".join(texts))

    def finish(self, host: type[Host]) -> Host:
        """The host; the draft is not used any more."""
        by_kind = self.registries.by_kind()
        core, *others = self.records
        others.sort(key=lambda record: (record.provenance.plugin, record.provenance.dist))
        return host(
            models=self.registries.models,
            strategies=self.registries.strategies,
            attention=self.registries.attention,
            components=MappingProxyType(self.registries.components),
            registries=MappingProxyType(by_kind),
            not_loaded=tuple(self.not_loaded),
            records=tuple(_with_contents(record, by_kind) for record in (core, *others)),
            manager=self.manager,
        )


def _registry(registries: Registries, descriptor: Descriptor) -> Registry[Any]:
    match descriptor:
        case ModelFamily():
            return registries.models
        case DecodingStrategy():
            return registries.strategies
        case AttentionBackendPlugin():
            return registries.attention
        case Component():
            return registries.components[descriptor.kind]


def _refuse_namesakes(namesakes: Sequence[Provenance]) -> None:
    if len(namesakes) > 1:
        releases = " and by ".join(plugin.release for plugin in namesakes)
        raise PluginError(
            f"the plugin name {namesakes[0].plugin!r} is declared by {releases}, and neither has the better claim. "
            f"{how_to_settle(namesakes[0], namesakes[1])}"
        )


def _with_contents(record: PluginRecord, registries: Mapping[str, Registry[Any]]) -> PluginRecord:
    """The record with the descriptors that the plugin has kept and the conflicts that cost it others."""
    if record.status != "loaded":
        return record
    registered = tuple(
        Registered(kind=kind, name=entry.descriptor.name, aliases=registry.aliases(entry.descriptor.name))
        for kind, registry in registries.items()
        for entry in registry.entries()
        if entry.provenance == record.provenance
    )
    conflicts = " ".join(text for registry in registries.values() for text in registry.conflicts(record.provenance))
    return attrs.evolve(record, registered=registered, reason=conflicts)
