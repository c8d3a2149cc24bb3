"""Test classes for what a descriptor describes: families, strategies, engines and whole plugins."""

from __future__ import annotations

from types import ModuleType

import pytest

from diffulex_core.errors import PluginError
from diffulex_core.host import Host
from diffulex_core.plugin import DecodingStrategy, ModelFamily, Register, hookimpl
from diffulex_core.testing.bases import Conformance
from diffulex_core.testing.generate import subjects_for
from diffulex_core.testing.reference import plugin as reference
from diffulex_core.testing.subjects import EngineSubject, FamilySubject, PluginSubject, StrategySubject, Subject

UNDER_TEST = "under_test"


class PluginConformance(Conformance, subject=PluginSubject):
    """Checks of a plugin as a whole. Override `plugin`."""

    @pytest.fixture
    def plugin(self) -> str | ModuleType:
        """Name of an installed plugin, or a module that is one without being installed."""
        self.says_nothing("plugin")

    @pytest.fixture
    def subject(self, plugin: str | ModuleType) -> Subject:
        host = Host.discover(extra=[reference, *([] if isinstance(plugin, str) else [plugin])])
        name = plugin if isinstance(plugin, str) else plugin.__name__
        return next(each for each in subjects_for(name, host) if isinstance(each, PluginSubject))


class FamilyConformance(Conformance, subject=FamilySubject):
    """Checks of a model family, its network and its weights. Override `family`; it needs a `tiny`."""

    @pytest.fixture
    def family(self) -> str | ModelFamily:
        """Name of an installed family, or the descriptor of one that is not."""
        self.says_nothing("family")

    @pytest.fixture
    def subject(self, family: str | ModelFamily) -> Subject:
        return family_of(family, host_with(family))


class RequestConformance(Conformance, subject=StrategySubject):
    """Checks of the requests of a decoding strategy. Override `strategy`, and `mode` for one of its other modes."""

    @pytest.fixture
    def strategy(self) -> str | DecodingStrategy:
        """Name of an installed strategy, or the descriptor of one that is not."""
        self.says_nothing("strategy")

    @pytest.fixture
    def mode(self) -> str | None:
        """Value of `sampling_mode`: the strategy's usual one."""
        return None

    @pytest.fixture
    def subject(self, strategy: str | DecodingStrategy, mode: str | None) -> Subject:
        name = strategy if isinstance(strategy, str) else strategy.name
        for each in subjects_for(name, host_with(strategy)):
            if isinstance(each, StrategySubject) and each.entry.descriptor.name == name and mode in (None, each.mode):
                return each
        where = f" in the mode {mode!r}" if mode else ""
        raise PluginError(f"no installed family that has a `tiny` runs with the strategy {name!r}{where}.")


class EngineConformance(Conformance, subject=EngineSubject):
    """Checks of a family and a strategy together. Override `family` and `strategy`, and `mode` for another mode."""

    @pytest.fixture
    def family(self) -> str | ModelFamily:
        """Name of an installed family, or the descriptor of one that is not."""
        self.says_nothing("family")

    @pytest.fixture
    def strategy(self) -> str | DecodingStrategy:
        """Name of an installed strategy, or the descriptor of one that is not."""
        self.says_nothing("strategy")

    @pytest.fixture
    def mode(self) -> str | None:
        """Value of `sampling_mode`: the strategy's usual one."""
        return None

    @pytest.fixture
    def subject(self, family: str | ModelFamily, strategy: str | DecodingStrategy, mode: str | None) -> Subject:
        host = host_with(family, strategy)
        partner = family_of(family, host)
        entry = host.strategies.entry(strategy if isinstance(strategy, str) else strategy.name)
        usual = str(entry.descriptor.forces.get("sampling_mode", "naive"))
        decoding = StrategySubject(host=host, entry=entry, mode=mode or usual, partner=partner)
        return EngineSubject(host=host, family=partner, strategy=decoding)


def host_with(*given: str | ModelFamily | DecodingStrategy) -> Host:
    """The installed plugins, the kit's own, and one that registers those of the given descriptors that nobody does."""
    host = Host.discover(extra=[reference])
    models = [each for each in given if isinstance(each, ModelFamily) and not _is_there(each, host)]
    strategies = [each for each in given if isinstance(each, DecodingStrategy) and not _is_there(each, host)]
    if not models and not strategies:
        return host
    module = ModuleType(UNDER_TEST)

    @hookimpl
    def diffulex_register_models(register: Register[ModelFamily]) -> None:
        for each in models:
            register(each)

    @hookimpl
    def diffulex_register_strategies(register: Register[DecodingStrategy]) -> None:
        for each in strategies:
            register(each)

    vars(module).update(
        diffulex_register_models=diffulex_register_models, diffulex_register_strategies=diffulex_register_strategies
    )
    host = Host.discover(extra=[reference, module])
    for refused in host.quarantined:
        if refused.provenance.plugin == UNDER_TEST:
            raise PluginError(f"what is under test cannot be registered: {refused.reason}")
    return host


def _is_there(descriptor: ModelFamily | DecodingStrategy, host: Host) -> bool:
    registry = host.models if isinstance(descriptor, ModelFamily) else host.strategies
    return any(entry.descriptor == descriptor for entry in registry.entries())


def family_of(family: str | ModelFamily, host: Host) -> FamilySubject:
    """A family as the checks want it.

    Raises:
        PluginError: its descriptor names no `tiny`.
    """
    name = family if isinstance(family, str) else family.name
    name = host.models.entry(name).descriptor.name
    for each in subjects_for(name, host):
        if isinstance(each, FamilySubject) and each.family.name == name:
            return each
    raise PluginError(f"the family {name!r} has no `tiny`: a reference to a small config.json, which the checks need.")
