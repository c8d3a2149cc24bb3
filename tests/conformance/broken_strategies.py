"""Plugins of one broken part each: a request, a pattern, a component or a family, and subjects made of them."""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import Any

from diffulex_core.hookspecs import Register
from diffulex_core.host import Host
from diffulex_core.plugin import Capability, Component, DecodingStrategy, ModelFamily, hookimpl
from diffulex_core.testing.generate import family_subject
from diffulex_core.testing.reference import plugin as reference
from diffulex_core.testing.subjects import EngineSubject, StrategySubject

BLOCKS = "diffulex_core.testing.reference.patterns:block_causal"
HERE = "tests.conformance."
THRESHOLDS = frozenset({"add_block_threshold", "semi_complete_threshold", "accept_threshold"})


def strategy(*, part: Component | None = None, family: ModelFamily | None = None, **recipe: Any) -> StrategySubject:
    """A block-causal strategy of which `recipe` changes something.

    Args:
        part: a component that comes with it.
        family: its partner; None = the kit's.
        recipe: fields of `DecodingStrategy`; references to code of these tests may begin at "broken_...".
    """
    host = Host.discover(extra=[plugin(part, family, **recipe), reference], environ={})
    partner = family_subject(host.models.entry(reference.FAMILY if family is None else family.name), host)
    assert partner is not None
    return StrategySubject(host=host, entry=host.strategies.entry("mutant"), partner=partner)


def engine(**parts: Any) -> EngineSubject:
    """The same as an engine; for the arguments see `strategy`."""
    recipe = strategy(**parts)
    return EngineSubject(host=recipe.host, family=recipe.partner, strategy=recipe)


def plugin(part: Component | None, family: ModelFamily | None, **recipe: Any) -> ModuleType:
    """A module that is a plugin with the strategy "mutant"."""
    module = ModuleType("kit_mutant")
    fields = {"pattern": BLOCKS, "requires": {Capability.MASK_TOKEN, Capability.BLOCK_CAUSAL}, "thresholds": THRESHOLDS}
    described = DecodingStrategy(name="mutant", **{name: _full(value) for name, value in {**fields, **recipe}.items()})

    @hookimpl
    def diffulex_register_strategies(register: Register[DecodingStrategy]) -> None:
        register(described)

    @hookimpl
    def diffulex_register_components(register: Register[Component]) -> None:
        if part is not None:
            register(part)

    @hookimpl
    def diffulex_register_models(register: Register[ModelFamily]) -> None:
        if family is not None:
            register(family)

    for hook in (diffulex_register_strategies, diffulex_register_components, diffulex_register_models):
        setattr(module, hook.__name__, hook)
    return module


@cache
def kit_family() -> ModelFamily:
    """The kit's family, to be changed."""
    return Host.discover(extra=[reference], environ={}).models.get(reference.FAMILY)


def _full(value: Any) -> Any:
    return HERE + value if isinstance(value, str) and value.startswith("broken_") else value
