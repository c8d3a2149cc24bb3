"""What of a plugin the kit can try at all."""

from __future__ import annotations

from diffulex_core.compat import missing_capabilities
from diffulex_core.plugin import DecodingStrategy
from diffulex_core.testing.check import AnyCheck, CheckFailed, check
from diffulex_core.testing.effort import Effort
from diffulex_core.testing.subjects import PluginSubject


@check(PluginSubject, level="recommended")
def check_plugin_parts_can_be_tried(subject: PluginSubject, effort: Effort) -> None:
    """Every family brings a small config.json, and every strategy finds a family that it runs with.

    Why: what cannot be built cannot be checked. Without this, a plugin whose checks all pass may be one of which next
    to nothing was looked at.

    Fix: give each `ModelFamily` a `tiny`: a reference to a config.json, as a dict, of a network with two layers of
    width 32 or so. If no family provides what a strategy requires, run the checks where one is installed, or let the
    plugin register a small one for tests.
    """
    host = subject.host
    families = [entry.descriptor for entry in host.models.entries() if entry.provenance == subject.record.provenance]
    problems = [f"the family {family.name!r} names no `tiny`." for family in families if family.tiny is None]
    for entry in host.strategies.entries():
        if entry.provenance == subject.record.provenance:
            problems += [
                f"no family with a `tiny` provides what {told} requires: {', '.join(sorted(recipe.requires))}."
                for told, recipe in _recipes(entry.descriptor).items()
                if not any(
                    other.descriptor.tiny is not None and not missing_capabilities(other.descriptor, recipe)
                    for other in host.models.entries()
                )
            ]
    if problems:
        raise CheckFailed(" ".join(["Not all of it was tried:", *problems]))


def _recipes(strategy: DecodingStrategy) -> dict[str, DecodingStrategy]:
    """The strategy in each of its modes, by how messages call it."""
    name = f"the strategy {strategy.name!r}"
    others = {f"{name} in the mode {mode!r}": strategy.in_mode(mode) for mode in strategy.modes}
    forced = strategy.forces.get("sampling_mode")
    if forced is not None:
        return {name: strategy.in_mode(str(forced))}
    return {name: strategy, **others}


CHECKS: tuple[AnyCheck, ...] = (check_plugin_parts_can_be_tried,)
