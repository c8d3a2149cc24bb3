"""From a name to the checks that apply: the descriptors of a plugin choose them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from types import ModuleType
from typing import Any

from diffulex_core.compat import missing_capabilities
from diffulex_core.discovery import CORE
from diffulex_core.errors import PluginError, UnknownNameError
from diffulex_core.host import Host, PluginRecord
from diffulex_core.kernels.layers.twins import TorchLayers
from diffulex_core.kv_cache import PagedKVCache
from diffulex_core.plugin import AttentionBackendPlugin, Component, DecodingStrategy, ModelFamily
from diffulex_core.registry import Entry, Provenance
from diffulex_core.runner import EagerRunner
from diffulex_core.sampling import PackedSampler
from diffulex_core.scheduler import ContinuousScheduler
from diffulex_core.testing.catalogue import CHECKS
from diffulex_core.testing.effort import Effort, Tier
from diffulex_core.testing.outcome import BoundCheck
from diffulex_core.testing.reference import plugin as reference
from diffulex_core.testing.static_runner import static_runner
from diffulex_core.testing.subjects import (
    AttentionSubject,
    CachePolicySubject,
    EngineSubject,
    ExecutorSubject,
    ExpertsSubject,
    FamilySubject,
    KVCacheSubject,
    LayerKernelsSubject,
    ModelSourceSubject,
    PluginSubject,
    RunnerSubject,
    SamplerSubject,
    SchedulerSubject,
    StrategySubject,
    Subject,
)
from diffulex_core.unknown import hints


def checks_for(name: str, *, tier: Tier = "fast", plugins: Iterable[ModuleType] = ()) -> list[BoundCheck]:
    """The checks of everything called `name`.

    Args:
        name: of a plugin, of its distribution, or of one family, strategy, attention backend or component.
        tier: how hard to try.
        plugins: modules that are plugins without being installed, as tests have them.
    Returns:
        Checks bound to their subjects; those that say nothing about a subject, or need a higher tier, are among them
        (`reason_against`).
    Raises:
        UnknownNameError: nothing is called that.
    """
    host = Host.discover(extra=[*plugins, reference])
    effort = Effort(tier=tier)
    return [
        BoundCheck(check=check, subject=subject, effort=effort)
        for subject in subjects_for(name, host)
        for check in CHECKS
        if isinstance(subject, check.subject)
    ]


def subjects_for(name: str, host: Host) -> list[Subject]:
    """Everything called `name` that checks can be run on.

    Raises:
        UnknownNameError: nothing is called that.
    """
    records = [each for each in host.plugins() if name in (each.provenance.plugin, each.provenance.dist)]
    if records:
        subjects = (subject for record in records for subject in _of_plugin(record, host))
        return list({subject.label: subject for subject in subjects}.values())
    found = [
        subject
        for kind, registry in host.registries.items()
        if name in registry
        for subject in _of_entry(kind, registry.entry(name), host)
    ]
    if not found:
        raise UnknownNameError(f"nothing is called {name!r}. {hints(name, host)}")
    return found


def _of_plugin(record: PluginRecord, host: Host) -> Iterator[Subject]:
    yield PluginSubject(host=host, record=record)
    for kind, registry in host.registries.items():
        for entry in registry.entries():
            if entry.provenance == record.provenance:
                # What cannot be loaded is a failure of the plugin's own checks; the rest of it is checked all the same.
                with suppress(PluginError):
                    yield from [*_of_entry(kind, entry, host)]
    if record.provenance == CORE:
        # The engine's own parts, which no descriptor names.
        yield KVCacheSubject(name="paged", factory=PagedKVCache)
        yield SchedulerSubject(name="continuous", factory=ContinuousScheduler, kv_cache=PagedKVCache)
        yield SamplerSubject(name="packed", factory=PackedSampler)
        yield RunnerSubject(name="eager", factory=EagerRunner)
        yield RunnerSubject(name="static", factory=static_runner)
        yield LayerKernelsSubject(name="twins in torch", factory=TorchLayers)


def _of_entry(kind: str, entry: Entry[Any], host: Host) -> Iterator[Subject]:
    match entry.descriptor:
        case ModelFamily():
            yield from _of_family(entry, host)
        case DecodingStrategy():
            yield from _of_strategy(entry, host)
        case AttentionBackendPlugin(name=name, impl=impl, probe=probe):
            load = partial(host.load, provenance=entry.provenance)
            yield AttentionSubject(name=name, factory=load(impl), probe=load(probe))
        case Component(name=name, factory=factory):
            component = host.load(factory, provenance=entry.provenance)
            match kind:
                case "kv_cache":
                    yield KVCacheSubject(name=name, factory=component)
                case "scheduler":
                    yield SchedulerSubject(name=name, factory=component, kv_cache=PagedKVCache)
                case "sampler":
                    yield SamplerSubject(name=name, factory=component)
                case "cache_policy":
                    yield CachePolicySubject(name=name, factory=component)
                case "runner":
                    yield RunnerSubject(name=name, factory=component)
                case "executor":
                    yield ExecutorSubject(name=name, factory=component)
                case "model_source":
                    yield ModelSourceSubject(name=name, factory=component)
                case "kernel":
                    yield ExpertsSubject(name=name, factory=component)
                case "layer_kernels":
                    yield LayerKernelsSubject(name=name, factory=component)


def family_subject(entry: Entry[ModelFamily], host: Host) -> FamilySubject | None:
    """A family with its small config.json; None when it brings none."""
    tiny = entry.descriptor.tiny
    if tiny is None:
        return None
    config = host.load(tiny, provenance=entry.provenance)
    if not isinstance(config, Mapping):
        raise PluginError(f"{tiny!r} of plugin {entry.provenance} is {config!r}; a `tiny` is a config.json as a dict.")
    return FamilySubject(host=host, entry=entry, config=dict(config))


def _of_family(entry: Entry[ModelFamily], host: Host) -> Iterator[Subject]:
    """The family, and engines with strategies of its own plugin, of the kit, and the one that it prefers."""
    family = family_subject(entry, host)
    if family is None:
        return
    yield family
    for other in host.strategies.entries():
        ours = other.provenance in (entry.provenance, _kit(host))
        if (ours or other.descriptor.name == entry.descriptor.default_strategy) and not missing_capabilities(
            entry.descriptor, other.descriptor
        ):
            strategy = StrategySubject(host=host, entry=other, mode=_modes(other.descriptor)[0], partner=family)
            yield EngineSubject(host=host, family=family, strategy=strategy)


def _of_strategy(entry: Entry[DecodingStrategy], host: Host) -> Iterator[Subject]:
    """The strategy in each of its modes, and an engine with a family that fits."""
    for mode in _modes(entry.descriptor):
        partner = _partner(entry, mode, host)
        if partner is not None:
            strategy = StrategySubject(host=host, entry=entry, mode=mode, partner=partner)
            yield strategy
            yield EngineSubject(host=host, family=partner, strategy=strategy)


def _modes(strategy: DecodingStrategy) -> tuple[str, ...]:
    """The modes that a strategy can run in, its usual one first."""
    forced = strategy.forces.get("sampling_mode")
    return ("naive", *strategy.modes) if forced is None else (str(forced),)


def _partner(entry: Entry[DecodingStrategy], mode: str, host: Host) -> FamilySubject | None:
    """A family that provides what a mode requires: of the same plugin, of the kit, or any that is installed."""
    wanted = entry.descriptor.in_mode(mode)
    homes = (entry.provenance, _kit(host))
    fitting = [each for each in host.models.entries() if not missing_capabilities(each.descriptor, wanted)]
    fitting.sort(key=lambda each: homes.index(each.provenance) if each.provenance in homes else len(homes))
    return next(filter(None, (family_subject(each, host) for each in fitting)), None)


def _kit(host: Host) -> Provenance:
    """The kit's own plugin in this host."""
    return host.models.entry(reference.FAMILY).provenance
