"""Plugins made for the configuration tests: two families, three strategies, and the checkpoint of one of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import attrs

from diffulex_core.config import EngineConfig, key, resolve
from diffulex_core.errors import ConfigError
from diffulex_core.host import Host
from diffulex_core.plugin import Capability, DecodingStrategy, ModelFamily, hookimpl


@attrs.frozen(kw_only=True)
class AlphaOptions:
    """Keys of the family alpha."""

    heat: float = key(
        0.5, "Heat.", aliases=("alpha_heat",), minimum=0, maximum=1, generation_config=("heat", "sampler.heat")
    )
    rounds: int = 3


@attrs.frozen(kw_only=True)
class PairsOptions:
    """Keys of the strategy pairs."""

    pair_order: tuple[str, ...] = key((), "Order of the pairs.", choices=("left", "right"))


def check_alpha(config: Mapping[str, Any]) -> list[str]:
    return ["layers is missing; add it."] if config.get("layers") == "missing" else []


ALPHA = ModelFamily(
    name="alpha",
    aliases=("alpha_chat",),
    architectures=("AlphaLM", "SharedLM"),
    model_types=("alpha",),
    build="tests.core.config_kit:ALPHA",
    weights="tests.core.config_kit:ALPHA",
    provides={Capability.MASK_TOKEN, Capability.BLOCK_CAUSAL, Capability.FULL_PREFIX},
    default_strategy="blocks",
    defaults={"buffer_size": 3},
    config_cls="tests.core.config_kit:AlphaOptions",
    check_config="tests.core.config_kit:check_alpha",
)
BETA = ModelFamily(
    name="beta",
    architectures=("BetaLM", "SharedLM"),
    model_types=("beta",),
    build="tests.core.config_kit:BETA",
    weights="tests.core.config_kit:BETA",
    provides={Capability.BLOCK_CAUSAL},
)
BLOCKS = DecodingStrategy(
    name="blocks",
    aliases=("block_wise",),
    pattern="tests.core.config_kit:BLOCKS",
    requires={Capability.BLOCK_CAUSAL},
    thresholds={"add_block_threshold", "semi_complete_threshold", "accept_threshold"},
)
PREFIX = DecodingStrategy(
    name="prefix",
    pattern="tests.core.config_kit:PREFIX",
    requires={Capability.MASK_TOKEN, Capability.FULL_PREFIX},
    thresholds={"accept_threshold"},
    forces={"enable_prefix_caching": False},
)
PAIRS = DecodingStrategy(
    name="pairs",
    pattern="tests.core.config_kit:PAIRS",
    requires={Capability.BLOCK_CAUSAL},
    defaults={"block_size": 8, "buffer_size": 2},
    config_cls="tests.core.config_kit:PairsOptions",
)
ALPHA_OWN = DecodingStrategy(
    name="alpha_own", pattern="tests.core.config_kit:ALPHA_OWN", config_cls="tests.core.config_kit:AlphaOptions"
)

CHECKPOINT: Mapping[str, Any] = {
    "architectures": ["AlphaLM"],
    "model_type": "alpha",
    "max_position_embeddings": 4096,
    "vocab_size": 1000,
    "mask_token_id": 7,
    "eos_token_id": 2,
}


def make_host(
    *,
    families: tuple[ModelFamily, ...] = (ALPHA, BETA),
    strategies: tuple[DecodingStrategy, ...] = (BLOCKS, PREFIX, PAIRS, ALPHA_OWN),
    validate: Callable[[EngineConfig], list[str]] | None = None,
    extra: tuple[ModuleType, ...] = (),
) -> Host:
    """A host with these plugins and core's own, whatever is installed."""
    module = ModuleType("config_test_plugin")

    @hookimpl
    def diffulex_register_models(register: Callable[[ModelFamily], None]) -> None:
        for family in families:
            register(family)

    @hookimpl
    def diffulex_register_strategies(register: Callable[[DecodingStrategy], None]) -> None:
        for strategy in strategies:
            register(strategy)

    hooks: dict[str, Any] = {
        "diffulex_register_models": diffulex_register_models,
        "diffulex_register_strategies": diffulex_register_strategies,
    }
    if validate is not None:

        @hookimpl
        def diffulex_validate_config(config: EngineConfig) -> list[str]:
            return validate(config)

        hooks["diffulex_validate_config"] = diffulex_validate_config
    vars(module).update(hooks)
    return Host.discover([], {}, extra=[module, *extra])


HOST = make_host()


def configure(options: Mapping[str, object] | None = None, **given: Any) -> EngineConfig:
    """Resolve for the checkpoint of alpha, with this module's plugins unless others are given."""
    return resolve(given.pop("model", "ckpt"), options, **{"host": HOST, "checkpoint": CHECKPOINT, **given})


def problems_of(options: Mapping[str, object] | None = None, **given: Any) -> tuple[str, ...]:
    """What a configuration is refused for; empty when it is accepted."""
    try:
        configure(options, **given)
    except ConfigError as error:
        return error.problems
    return ()
