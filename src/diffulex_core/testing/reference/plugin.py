"""Registers the kit's family and strategies; imports no torch."""

from __future__ import annotations

from diffulex_core.hookspecs import Register
from diffulex_core.plugin import Capability, Component, DecodingStrategy, ModelFamily, hookimpl

FAMILY = "kit_decoder"
"""Name of the kit's family."""

_THRESHOLDS = frozenset(
    {"add_block_threshold", "semi_complete_threshold", "accept_threshold", "token_stability_threshold"}
)


@hookimpl
def diffulex_register_models(register: Register[ModelFamily]) -> None:
    register(
        ModelFamily(
            name=FAMILY,
            architectures=("DiffulexKitForMaskedLM",),
            build="diffulex_core.testing.reference.model:build",
            weights="diffulex_core.testing.reference.model:WEIGHTS",
            provides={
                Capability.MASK_TOKEN,
                Capability.BLOCK_CAUSAL,
                Capability.FULL_PREFIX,
                Capability.FULL_ATTENTION,
                Capability.EDIT,
            },
            default_strategy="kit_blocks",
            tiny="diffulex_core.testing.reference.model:TINY",
        )
    )


@hookimpl
def diffulex_register_strategies(register: Register[DecodingStrategy]) -> None:
    register(
        DecodingStrategy(
            name="kit_blocks",
            pattern="diffulex_core.testing.reference.patterns:block_causal",
            requires={Capability.MASK_TOKEN, Capability.BLOCK_CAUSAL},
            thresholds=_THRESHOLDS,
        )
    )
    register(
        DecodingStrategy(
            name="kit_prefix",
            pattern="diffulex_core.testing.reference.patterns:full_prefix",
            requires={Capability.MASK_TOKEN, Capability.FULL_PREFIX},
            thresholds=_THRESHOLDS,
            # A prompt's K/V depend on the whole prompt, so no two different prompts could share a page.
            forces={"enable_prefix_caching": False},
        )
    )


@hookimpl
def diffulex_register_components(register: Register[Component]) -> None:
    register(Component(kind="executor", name="kit_sharp", factory="diffulex_core.testing.engines:sharp"))
    register(Component(kind="executor", name="kit_poisoned", factory="diffulex_core.testing.engines:poisoned"))
    register(Component(kind="executor", name="kit_static", factory="diffulex_core.testing.engines:static"))
    register(Component(kind="executor", name="kit_copying", factory="diffulex_core.testing.copying:copying"))
