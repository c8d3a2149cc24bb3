"""Which plugins take part: the `plugins` argument and the two environment variables."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence

import attrs

from diffulex_core.errors import PluginError, UnknownNameError
from diffulex_core.registry import Provenance, did_you_mean

ALLOW = "DIFFULEX_PLUGINS"
"""Comma-separated names of plugins or distributions; only these are used. Empty = no restriction."""
DENY = "DIFFULEX_DISABLE_PLUGINS"
"""Comma-separated names of plugins or distributions that are not used."""

_log = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class Selection:
    """Allow and deny lists. Names are those of plugins or distributions; case, `-`, `_` and `.` make no difference.

    Attributes:
        allow: only these take part; None = all. Core's own plugin always does.
        source: who set `allow`, for messages.
        deny: these do not take part, whatever `allow` says.
    """

    allow: tuple[str, ...] | None
    source: str
    deny: tuple[str, ...]

    @classmethod
    def of(cls, plugins: Sequence[str] | None, environ: Mapping[str, str]) -> Selection:
        """What the argument says or, without one, the environment.

        Raises:
            PluginError: `plugins` is one string instead of a list.
        """
        if isinstance(plugins, str):
            raise PluginError(f"plugins={plugins!r} is one string; give a list of names, as in plugins=[{plugins!r}].")
        deny = _names(environ.get(DENY, ""))
        if plugins is not None:
            return cls(allow=tuple(plugins), source="plugins=[...]", deny=deny)
        return cls(allow=_names(environ.get(ALLOW, "")) or None, source=ALLOW, deny=deny)

    def check(self, installed: Iterable[Provenance]) -> None:
        """Compare the lists with what is installed.

        Raises:
            UnknownNameError: `allow` holds a name that nothing has. One in `deny` is only logged, because a variable
                may name plugins that are not installed everywhere.
        """
        installed = tuple(installed)
        unknown = [name for name in self.allow or () if not any(_matches(name, plugin) for plugin in installed)]
        choices = [name for plugin in installed for name in (plugin.plugin, plugin.dist)]
        if unknown:
            listing = ", ".join(f"{plugin.plugin} ({plugin.release})" for plugin in installed)
            hints = " ".join(filter(None, (did_you_mean(name, choices) for name in unknown)))
            raise UnknownNameError(
                f"no plugin {', '.join(map(repr, unknown))} (named by {self.source}). Installed: {listing}."
                + (f"\n  {hints}" if hints else "")
            )
        for name in self.deny:
            matches = [plugin for plugin in installed if _matches(name, plugin)]
            if not matches:
                _log.warning("%s names %r, which is not installed. %s", DENY, name, did_you_mean(name, choices))
            elif all(plugin.permanent for plugin in matches):
                _log.warning("%s names %r, but core's own plugin is always on.", DENY, name)

    def refusal(self, plugin: Provenance, *, given: bool) -> str:
        """Why the plugin does not take part; empty when it does.

        Args:
            plugin: which one.
            given: it was handed over as a module, which is as good as being listed in `allow`.
        """
        if any(_matches(name, plugin) for name in self.deny):
            return f"disabled by {DENY}"
        if self.allow is not None and not given and not any(_matches(name, plugin) for name in self.allow):
            return f"not listed in {self.source}"
        return ""


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for part in text.split(",") if (name := part.strip()))


def _matches(name: str, plugin: Provenance) -> bool:
    return _normal(name) in (_normal(plugin.plugin), _normal(plugin.dist))


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
