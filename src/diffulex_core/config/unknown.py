"""What to say about a key that no selected section has: who owns it, or which key was meant."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import attrs

from diffulex_core.config.known_keys import OWNERS, PER_REQUEST, WITHOUT_MEANING
from diffulex_core.config.layers import Given
from diffulex_core.config.schema import Schema, Section, build_schema
from diffulex_core.errors import PluginError

if TYPE_CHECKING:
    from diffulex_core.host import Host


@attrs.frozen(kw_only=True)
class Unknown:
    """A sentence about an unknown key.

    Attributes:
        text: the sentence.
        fatal: the key means something elsewhere, so ignoring it would change the result: always a problem.
        harmless: the key means nothing anywhere: never a problem.
    """

    text: str
    fatal: bool = False
    harmless: bool = False


def explain_unknown(given: Given, schema: Schema, host: Host) -> Unknown:
    """Why `given` is not a key here, and what to do."""
    name = given.name
    if name in WITHOUT_MEANING:
        return Unknown(text=f"{name} ({given.origin}) has no meaning here: {WITHOUT_MEANING[name]}.", harmless=True)
    owners = list(_unselected_owners(name, host))
    if owners:
        owner = " and ".join(owners)
        text = f"{name} ({given.origin}) belongs to {owner}, not selected here. Select it, or remove the key."
        return Unknown(text=text, fatal=True)
    if name in OWNERS:
        text = (
            f"{name} ({given.origin}) is a key of the package {OWNERS[name]}, and no plugin in use provides it. "
            f"Install or update {OWNERS[name]} and select its model family or strategy, or remove the key."
        )
        return Unknown(text=text, fatal=True)
    where = f"section {given.title} has no key {name}" if given.title else f"there is no key {name}"
    group = name.rpartition(".")[0]
    members = [key.removeprefix(f"{group}.") for key in schema.by_name if group and key.startswith(f"{group}.")]
    closest = schema.closest(name)
    if name in PER_REQUEST:
        advice = f"It is set for each request: SamplingParams({name}=...)."
    elif members and closest in (None, group):
        advice = f"{group} has {', '.join(members)}."
    else:
        advice = f"Did you mean {closest}?" if closest else "`diffulex config schema` lists all keys."
    verdict = "unknown" if given.strict else "ignored"
    return Unknown(text=f"{name} ({given.origin}) is {verdict}: {where}. {advice}")


def _unselected_owners(name: str, host: Host) -> Iterator[str]:
    for kind, registry in (("model family", host.models), ("strategy", host.strategies)):
        for entry in registry.entries():
            reference = entry.descriptor.config_cls
            if reference is None:
                continue
            try:
                cls = host.load(reference, provenance=entry.provenance)
                own = build_schema([Section(name=kind, owner=f"{kind} '{entry.descriptor.name}'", cls=cls, titles=())])
            except PluginError:
                # A plugin that is not selected may be broken without being in the way.
                continue
            if name in own.by_name:
                yield own.by_name[name].owner
