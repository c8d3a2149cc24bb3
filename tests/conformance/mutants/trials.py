"""Plugins of which the kit cannot try everything."""

from __future__ import annotations

from functools import partial
from types import ModuleType

from diffulex_core.host import Host
from diffulex_core.plugin import DecodingStrategy, ModelFamily, Register, SamplingMode, hookimpl
from diffulex_core.testing.checks.trials import check_plugin_parts_can_be_tried
from diffulex_core.testing.reference import plugin as reference
from diffulex_core.testing.subjects import PluginSubject
from tests.conformance.mutant import Mutant

NAME = "shy"
PATTERN = "diffulex_core.testing.reference.patterns:block_causal"


def shy(*descriptors: ModelFamily | DecodingStrategy) -> PluginSubject:
    """A plugin that registers descriptors, beside the kit's."""
    module = ModuleType(NAME)

    @hookimpl
    def diffulex_register_models(register: Register[ModelFamily]) -> None:
        for each in descriptors:
            if isinstance(each, ModelFamily):
                register(each)

    @hookimpl
    def diffulex_register_strategies(register: Register[DecodingStrategy]) -> None:
        for each in descriptors:
            if isinstance(each, DecodingStrategy):
                register(each)

    vars(module).update(
        diffulex_register_models=diffulex_register_models, diffulex_register_strategies=diffulex_register_strategies
    )
    host = Host.discover(extra=[module, reference])
    return PluginSubject(host=host, record=next(each for each in host.plugins() if each.provenance.plugin == NAME))


MUTANTS = tuple(
    Mutant(name=name, check=check_plugin_parts_can_be_tried, subject=partial(shy, descriptor))
    for name, descriptor in (
        ("a family without a tiny", ModelFamily(name="shy", build="shy:build", weights="shy:WEIGHTS")),
        (
            "a strategy that no family suits",
            DecodingStrategy(name="shy", pattern=PATTERN, requires={"telepathy"}),
        ),
        (
            "a mode that no family suits",
            DecodingStrategy(name="shy", pattern=PATTERN, modes={"far": SamplingMode(requires={"telepathy"})}),
        ),
    )
)
