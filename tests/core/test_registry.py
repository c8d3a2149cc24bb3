"""Registries, references and hosts made from modules, without anything installed."""

from __future__ import annotations

import pickle
import string
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, strategies as st

from diffulex_core.compat import missing_capabilities, require_compatible
from diffulex_core.errors import IncompatibleError, PluginError, UnknownNameError
from diffulex_core.host import Host
from diffulex_core.observers import CompositeObserver, combine
from diffulex_core.plugin import Capability, DecodingStrategy, ModelFamily, hookimpl
from diffulex_core.refs import load_reference
from diffulex_core.registry import Provenance, Registry
from diffulex_core.types import CompletionReason, StepOutput, StepPlan
from tests.core.config_kit import configure

ORIGIN = Provenance(plugin="fruit", dist="diffulex-fruit", version="0.4", module="fruit")
NAMES = st.sampled_from(string.ascii_lowercase[:6])


def family(name: str, *aliases: str, provides: frozenset[str] = frozenset()) -> ModelFamily:
    return ModelFamily(name=name, aliases=aliases, build="m:build", weights="m:W", provides=provides)


def strategy(name: str, *requires: str) -> DecodingStrategy:
    return DecodingStrategy(name=name, pattern="m:pattern", requires=frozenset(requires))


def plugin(name: str, **hooks: Callable[..., Any]) -> ModuleType:
    """A plugin module; every keyword is a hook."""
    module = ModuleType(name)
    for hook, function in hooks.items():
        module.__dict__[hook] = hookimpl(function)
    return module


def models_plugin(name: str, *families: ModelFamily) -> ModuleType:
    def diffulex_register_models(register: Callable[[object], None]) -> None:
        for descriptor in families:
            register(descriptor)

    return plugin(name, diffulex_register_models=diffulex_register_models)


@given(st.lists(st.tuples(NAMES, st.lists(NAMES, max_size=3)), max_size=8))
def test_a_registry_answers_every_accepted_name_and_a_refused_descriptor_leaves_no_trace(
    calls: list[tuple[str, list[str]]],
) -> None:
    registry: Registry[ModelFamily] = Registry(kind="model family")
    expected: dict[str, str] = {}
    for name, aliases in calls:
        mine = [name, *aliases]
        acceptable = len(set(mine)) == len(mine) and not set(mine) & set(expected)
        try:
            registry.add(family(name, *aliases), ORIGIN)
        except PluginError:
            assert not acceptable
        else:
            assert acceptable
            expected |= dict.fromkeys(mine, name)
        assert {key: registry.get(key).name for key in expected} == expected
        assert {key for key in string.ascii_lowercase if key in registry} == set(expected)
        assert list(registry.names()) == [descriptor.name for descriptor in registry]
        assert len(registry) == len(set(expected.values()))


PLUGINS = st.lists(
    st.tuples(st.sampled_from("pqrs"), st.lists(NAMES, max_size=3, unique=True)), unique_by=lambda item: item[0]
)


@given(PLUGINS)
def test_a_host_does_not_depend_on_the_order_of_its_plugins_and_nobody_wins_a_contested_name(
    plugins: list[tuple[str, list[str]]],
) -> None:
    modules = [models_plugin(name, *map(family, names)) for name, names in plugins]
    host = Host.discover([], {}, extra=modules)
    assert host == Host.discover([], {}, extra=sorted(modules, key=lambda module: module.__name__))
    owners: dict[str, str] = {}
    contested: set[str] = set()
    quarantined = set()
    for plugin_name, names in sorted(plugins):
        taken = set(names) & set(owners)
        contested |= taken
        if taken:
            quarantined.add(plugin_name)
        else:
            owners |= dict.fromkeys(names, plugin_name)
    assert {item.provenance.plugin for item in host.quarantined} == quarantined
    assert set(host.models.names()) == set(owners) - contested
    for name in host.models.names():
        assert host.models.entry(name).provenance.plugin == owners[name]
    for name in contested:
        with pytest.raises(PluginError, match=f"'{name}' is registered by '{owners[name]}'"):
            host.models.get(name)


def test_two_hosts_share_nothing() -> None:
    module = models_plugin("fruit", family("apple"))
    first, second = (Host.discover([], {}, extra=[module]) for _ in range(2))
    first.models.add(family("cherry"), ORIGIN)
    assert "cherry" not in second.models
    assert first != second


def test_a_given_module_needs_no_place_in_the_allow_list_but_can_be_disabled() -> None:
    module = models_plugin("fruit", family("apple"))
    assert "apple" in Host.discover([], {}, extra=[module]).models
    assert "apple" not in Host.discover([], {"DIFFULEX_DISABLE_PLUGINS": "fruit"}, extra=[module]).models


def test_plugins_given_as_one_string_are_refused() -> None:
    with pytest.raises(PluginError, match=r"plugins=\['llada'\]"):
        Host.discover("llada", {})


def test_a_denied_name_that_is_not_installed_is_only_logged(caplog: pytest.LogCaptureFixture) -> None:
    host = Host.discover([], {"DIFFULEX_DISABLE_PLUGINS": "froot,core"}, extra=[models_plugin("fruit")])
    assert {record.provenance.plugin for record in host.plugins() if record.status == "loaded"} == {"core", "fruit"}
    assert "names 'froot', which is not installed. Did you mean 'fruit'?" in caplog.text
    assert "names 'core', but core's own plugin is always on" in caplog.text


def test_the_hooks_of_one_plugin_run_in_the_documented_order_and_are_called_once() -> None:
    calls = []

    def recorder(hook: str) -> Callable[..., None]:
        def record(register: Callable[[object], None]) -> None:
            calls.append(hook)

        return record

    kinds = ("components", "attention", "models", "strategies")
    hooks = {f"diffulex_register_{kind}": recorder(kind) for kind in kinds}
    Host.discover([], {}, extra=[plugin("fruit", **hooks)])
    assert calls == ["models", "strategies", "attention", "components"]


def test_register_is_closed_after_discovery() -> None:
    kept: list[Callable[[object], None]] = []

    def diffulex_register_models(register: Callable[[object], None]) -> None:
        kept.append(register)

    module = plugin("fruit", diffulex_register_models=diffulex_register_models)
    host = Host.discover([], {}, extra=[module])
    with pytest.raises(PluginError, match="called after discovery"):
        kept[0](family("apple"))
    assert "apple" not in host.models


def test_other_hooks_are_called_for_all_plugins_or_one_by_one_with_provenance() -> None:
    def says(text: str) -> Callable[..., list[str]]:
        def diffulex_validate_config(config: object) -> list[str]:
            return [text]

        return diffulex_validate_config

    modules = [plugin(name, diffulex_validate_config=says(f"{name} objects")) for name in ("pear", "apple")]
    host = Host.discover([], {}, extra=modules)
    config = configure()
    together = host.hooks.diffulex_validate_config(config=config)
    assert sorted(text for texts in together for text in texts) == ["apple objects", "pear objects"]
    one_by_one = {origin.plugin: call(config=config) for origin, call in host.callers("diffulex_validate_config")}
    assert [name for name in one_by_one if name != "core"] == ["apple", "pear"]
    assert one_by_one == {"core": [()], "apple": [["apple objects"]], "pear": [["pear objects"]]}


def test_a_reference_is_loaded_on_use_and_its_error_names_plugin_and_distribution() -> None:
    assert load_reference("diffulex_core.pattern:BlockCausal", provenance=ORIGIN).__name__ == "BlockCausal"
    for reference in ("no_such_package.mod:attr", "diffulex_core.pattern:NoSuchPattern"):
        with pytest.raises(PluginError, match=rf"'{reference}' of plugin 'fruit' \(diffulex-fruit 0.4\)"):
            Host.discover([], {}).load(reference, provenance=ORIGIN)


def test_an_empty_registry_says_so() -> None:
    registry: Registry[ModelFamily] = Registry(kind="model family")
    with pytest.raises(UnknownNameError, match=r"no model family 'x'\. No model family is registered"):
        registry.get("x")


@given(st.frozensets(NAMES), st.frozensets(NAMES))
def test_a_strategy_fits_exactly_when_the_family_provides_all_it_requires(
    provides: frozenset[str], requires: frozenset[str]
) -> None:
    model, wish = family("m", provides=provides), strategy("s", *requires)
    assert missing_capabilities(model, wish) == requires - provides
    if requires <= provides:
        require_compatible(model, wish, strategies=[wish])
    else:
        with pytest.raises(IncompatibleError, match="No registered strategy fits"):
            require_compatible(model, wish, strategies=[wish])


def test_a_misfit_names_both_sides_what_is_missing_and_what_would_fit() -> None:
    model = family("apple", provides=frozenset({"mask_token"}))
    strategies = [strategy("press", "soft_inputs", "edit"), strategy("slice", "mask_token")]
    with pytest.raises(IncompatibleError) as caught:
        require_compatible(model, strategies[0], strategies=strategies)
    (problem,) = caught.value.problems
    assert "'press' requires edit, soft_inputs, which the model family 'apple' does not provide" in problem
    assert "decoding_strategy='slice'" in problem


class Recorder:
    """An observer that writes down its events, and fails to close when told to."""

    def __init__(self, log: list[str], name: str, *, fails: bool = False) -> None:
        self.log, self.name, self.fails = log, name, fails

    def on_request_added(self, request_id: int) -> None:
        self.log.append(f"{self.name} added {request_id}")

    def on_step(self, plan: StepPlan, output: StepOutput, seconds: float) -> None:
        self.log.append(f"{self.name} step {plan.step} {seconds}")

    def on_request_finished(self, request_id: int, reason: CompletionReason) -> None:
        self.log.append(f"{self.name} finished {request_id} {reason.value}")

    def close(self) -> None:
        self.log.append(f"{self.name} closed")
        if self.fails:
            raise OSError("disk full")


def test_a_composite_observer_passes_events_on_in_order_and_closes_all() -> None:
    log: list[str] = []
    observer = combine([Recorder(log, "a", fails=True), None, Recorder(log, "b")])
    assert isinstance(observer, CompositeObserver)
    observer.on_request_added(7)
    observer.on_step(StepPlan(step=1, windows=()), StepOutput(decisions=(), head_rows=0), 0.5)
    observer.on_request_finished(7, CompletionReason.STOP_EOS)
    with pytest.raises(OSError, match="disk full"):
        observer.close()
    events = ["added 7", "step 1 0.5", "finished 7 stop_eos", "closed"]
    assert log == [f"{name} {event}" for event in events for name in ("a", "b")]


def test_descriptors_can_be_pickled_and_hashed() -> None:
    family = ModelFamily(name="toy", build="toy:build", weights="toy:WEIGHTS", defaults={"block_size": 8})
    strategy = DecodingStrategy(name="fill", pattern="toy:pattern", forces={"enable_prefix_caching": False})
    for descriptor in (family, strategy):
        assert pickle.loads(pickle.dumps(descriptor)) == descriptor
        assert hash(descriptor) == hash(pickle.loads(pickle.dumps(descriptor)))


def test_a_strategy_for_aligned_logits_does_not_fit_a_family_with_shifted_ones() -> None:
    wish = strategy("fill", Capability.ALIGNED_LOGITS)
    shifted = ModelFamily(name="pear", build="m:build", weights="m:WEIGHTS", logits="shifted")
    assert missing_capabilities(family("apple"), wish) == frozenset()
    assert missing_capabilities(shifted, wish) == {"aligned_logits"}
