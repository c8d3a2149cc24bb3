"""What to say about a name that nothing has: what is close, what is installed, and what could not be loaded."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, distribution

from diffulex_core.hookspecs import ENTRY_POINT_GROUP
from diffulex_core.host import Host
from diffulex_core.registry import did_you_mean, not_loaded_text

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def hints(name: str, host: Host) -> str:
    """Sentences that help whoever asked for `name`, which no plugin, distribution or descriptor of the host has."""
    plugins = sorted({record.provenance.plugin for record in host.plugins() if not record.given})
    named = [
        each
        for registry in host.registries.values()
        for main in registry.names()
        for each in (main, *registry.aliases(main))
    ]
    sentences = [
        _installed(name, host) or did_you_mean(name, [*plugins, *named]),
        f"Plugins: {', '.join(plugins)}.",
        not_loaded_text(host.not_loaded),
        "`diffulex plugins list` shows what they register.",
    ]
    return " ".join(filter(None, sentences))


def _installed(name: str, host: Host) -> str:
    """That a distribution of this name is installed and registers nothing itself; empty where none is."""
    if not _NAME.fullmatch(name):
        return ""
    try:
        found = distribution(name)
    except PackageNotFoundError:
        return ""
    needed = {_plain(match[0]) for each in found.requires or () if (match := _NAME.match(each))}
    brought = sorted({each.provenance.plugin for each in host.plugins() if _plain(each.provenance.dist) in needed})
    lead = f"The distribution {found.name} {found.version} is installed, but has no entry point in the group"
    if brought:
        return f"{lead} {ENTRY_POINT_GROUP!r}; it builds on {', '.join(brought)}: ask for one of these."
    return f"{lead} {ENTRY_POINT_GROUP!r}. If it is to be a plugin, add one to its pyproject.toml and install it again."


def _plain(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub("[-_.]+", "-", name).lower()
