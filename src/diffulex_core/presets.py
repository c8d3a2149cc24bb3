"""Named settings of a strategy: one word for several sampling parameters, each of which a request may still set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffulex_core.errors import UnknownNameError
from diffulex_core.plugin import DecodingStrategy
from diffulex_core.registry import did_you_mean


def preset_arguments(strategy: DecodingStrategy, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `SamplingParams`: those of the preset, with `settings` in their place.

    A preset that takes one step for each position does so for any length: another `gen_length`, or a `max_tokens`
    without one, takes its steps along unless these are set too.

    Raises:
        UnknownNameError: the strategy has no such preset; the message lists those it has.
    """
    if name not in strategy.presets:
        raise UnknownNameError(_unknown(strategy, name))
    preset: dict[str, Any] = dict(strategy.presets[name])
    given = dict(settings)
    if "max_tokens" in given and "gen_length" in preset:
        given.setdefault("gen_length", given["max_tokens"])
    if "gen_length" in given and "steps" in preset and preset["steps"] == preset.get("gen_length"):
        given.setdefault("steps", given["gen_length"])
    return preset | given


def _unknown(strategy: DecodingStrategy, name: str) -> str:
    lead = f"no preset {name!r} of the strategy {strategy.name!r}."
    if not strategy.presets:
        return f"{lead} It has none; set the sampling parameters one by one, or choose another strategy."
    hint = did_you_mean(name, strategy.presets)
    return f"{lead} It has {', '.join(sorted(strategy.presets))}.{' ' * bool(hint)}{hint}"
