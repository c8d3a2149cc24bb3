"""What to say about a key that no selected section has: who owns it, or which key was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import attrs

from diffulex_core.config.known_keys import OWNERS, PER_REQUEST, TABLES, WITHOUT_MEANING
from diffulex_core.config.layers import Given
from diffulex_core.config.schema import Schema, Section, build_schema
from diffulex_core.config.tables import command_tables
from diffulex_core.errors import PluginError
from diffulex_core.registry import did_you_mean

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
    if given.origin.source == "file" and given.title is None and isinstance(given.value, Mapping):
        return Unknown(text=_unknown_table(given, schema, host), fatal=True)
    where = f"section {given.title} has no key {name}" if given.title else f"there is no key {name}"
    group = name.rpartition(".")[0]
    members = [key.removeprefix(f"{group}.") for key in schema.by_name if group and key.startswith(f"{group}.")]
    closest = schema.closest(name)
    if name in PER_REQUEST:
        advice = f"It is set for each request: SamplingParams({name}=...)."
    elif members:
        near = difflib.get_close_matches(name.removeprefix(f"{group}."), members, n=1, cutoff=0.5)
        advice = f"Did you mean {group}.{near[0]}?" if near else f"{group} has {', '.join(members)}."
    else:
        advice = f"Did you mean {closest}?" if closest else "`diffulex config schema` lists all keys."
    verdict = "unknown" if given.strict else "ignored"
    return Unknown(text=f"{name} ({given.origin}) is {verdict}: {where}. {advice}")


def _unknown_table(given: Given, schema: Schema, host: Host) -> str:
    name = given.name
    if name in TABLES:
        what = f"is for commands of the package {TABLES[name]}, which is not in use"
        return f"{name} ({given.origin}) {what}. Install or enable it, or remove the table."
    known = [*schema.titles, *schema.groups, *command_tables(host)]
    advice = did_you_mean(name, known) or f"The tables are {', '.join(sorted(known))}."
    return f"{name} ({given.origin}) is unknown: there is no table {name}. {advice}"


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
