"""Named settings of a strategy: one word for several sampling parameters, each of which a request may still set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from diffulex_core.canvas.params import CANVAS_FIELDS
from diffulex_core.config import EngineConfig
from diffulex_core.descriptors import DecodingStrategy
from diffulex_core.errors import UnknownNameError
from diffulex_core.registry import did_you_mean


def preset_arguments(
    strategy: DecodingStrategy, name: str, settings: Mapping[str, Any], *, strategies: Iterable[DecodingStrategy] = ()
) -> dict[str, Any]:
    """Arguments of `SamplingParams`: those of the preset, with `settings` in their place.

    A preset that takes one step for each position does so for any length: another `gen_length`, or a `max_tokens`
    without one, takes its steps along unless these are set too.

    Args:
        strategies: all that are registered, to name those that have the preset.
    Raises:
        UnknownNameError: the strategy has no such preset; the message lists those it has.
    """
    if name not in strategy.presets:
        raise UnknownNameError(_unknown(strategy, name, strategies))
    preset: dict[str, Any] = dict(strategy.presets[name])
    given = dict(settings)
    if "max_tokens" in given and "gen_length" in preset:
        given.setdefault("gen_length", given["max_tokens"])
    if "gen_length" in given and "steps" in preset and preset["steps"] == preset.get("gen_length"):
        given.setdefault("steps", given["gen_length"])
    return preset | given


def given_to_engine(config: EngineConfig, name: str) -> dict[str, Any]:
    """Settings with which the keys that a person gave the engine come before a preset's.

    None leaves a setting to the engine. The sparse cache is a single setting of a request, so what was given of it is
    put into the preset's.
    """
    given = {key for key, origin in config.origins.items() if origin.by_user}
    settings: dict[str, Any] = {key: None for key in CANVAS_FIELDS if key in given}
    sparse = config.strategy.presets.get(name, {}).get("sparse")
    if isinstance(sparse, Mapping):
        values = attrs.asdict(config.cache.sparse)
        settings["sparse"] = {**sparse, **{key: value for key, value in values.items() if f"sparse.{key}" in given}}
    return settings


def _unknown(strategy: DecodingStrategy, name: str, strategies: Iterable[DecodingStrategy]) -> str:
    lead = f"no preset {name!r} of the strategy {strategy.name!r}."
    if not strategy.presets:
        having = sorted(other.name for other in strategies if name in other.presets)
        choice = f"one of the strategies that have it ({', '.join(having)})" if having else "another strategy"
        return f"{lead} It has none; set the sampling parameters one by one, or choose {choice}."
    hint = did_you_mean(name, strategy.presets)
    return f"{lead} It has {', '.join(sorted(strategy.presets))}.{' ' * bool(hint)}{hint}"
