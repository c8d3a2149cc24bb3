"""Registries: what plugins provide, by name, with errors that name every side."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from typing import Generic, Literal, Protocol, TypeVar

import attrs

from diffulex_core.errors import PluginError, UnknownNameError


class Descriptor(Protocol):
    """What a registry holds: a value with a name and other names for the same thing."""

    @property
    def name(self) -> str: ...

    @property
    def aliases(self) -> tuple[str, ...]: ...


T = TypeVar("T", bound=Descriptor)


@attrs.frozen(kw_only=True)
class Provenance:
    """Where a descriptor comes from.

    Attributes:
        plugin: name of the entry point.
        dist, version: the distribution that declares it.
        module: the module that it names.
        permanent: nobody can disable it or take a name from it (core's own plugin).
    """

    plugin: str
    dist: str
    version: str
    module: str
    permanent: bool = False

    @property
    def release(self) -> str:
        """Distribution and version, as in "diffulex-llada 0.1.0"."""
        return f"{self.dist} {self.version}".strip()

    def __str__(self) -> str:
        return f"'{self.plugin}' ({self.release})"


@attrs.frozen(kw_only=True)
class NotLoaded:
    """A plugin that is installed but contributes nothing.

    Attributes:
        provenance: which plugin.
        status: "quarantined" when it is at fault, "disabled" when the user switched it off.
        error: name of the exception type; empty for a disabled plugin.
        reason: text of the exception, or who switched it off; one line.
    """

    provenance: Provenance
    status: Literal["quarantined", "disabled"]
    error: str = ""
    reason: str

    def __str__(self) -> str:
        return f"{self.provenance}: {self.error + ': ' if self.error else ''}{self.reason}"


@attrs.frozen(kw_only=True)
class Entry(Generic[T]):
    """A registered descriptor and where it comes from."""

    descriptor: T
    provenance: Provenance


@attrs.frozen(kw_only=True)
class Clash:
    """A name that somebody else claimed first.

    Attributes:
        name: the contested name or alias.
        owner, rival: who claimed it first, and who claims it too.
        text: both sides, and how to disable one.
    """

    name: str
    owner: Provenance
    rival: Provenance
    text: str


@attrs.define(kw_only=True)
class Registry(Generic[T]):
    """Descriptors of one kind, found by name or alias.

    Attributes:
        kind: what it holds, as messages call it: "model family".
        not_loaded: plugins that might have provided a missing name; named in every unknown-name error.
    """

    kind: str
    not_loaded: Sequence[NotLoaded] = attrs.field(default=(), eq=False, repr=False)
    _entries: dict[str, Entry[T]] = attrs.field(factory=dict, init=False)
    _primary: dict[str, str] = attrs.field(factory=dict, init=False, repr=False)
    _claims: dict[str, Provenance] = attrs.field(factory=dict, init=False, repr=False)
    _contested: dict[str, str] = attrs.field(factory=dict, init=False)

    def add(self, descriptor: T, provenance: Provenance) -> None:
        """Register a descriptor under its name and aliases.

        Raises:
            PluginError: one of them is not usable as a name or is taken; nothing changed.
        """
        clashes = self.clashes(descriptor, provenance)
        if clashes:
            raise PluginError(" ".join(clash.text for clash in clashes))
        self._entries[descriptor.name] = Entry(descriptor=descriptor, provenance=provenance)
        for name in (descriptor.name, *descriptor.aliases):
            self._primary[name] = descriptor.name
            self._claims[name] = provenance

    def clashes(self, descriptor: T, provenance: Provenance) -> tuple[Clash, ...]:
        """The descriptor's names that are taken already.

        Raises:
            PluginError: a name or alias is not usable, or the descriptor repeats one.
        """
        names = self._checked_names(descriptor, provenance)
        return tuple(self._clash(name, descriptor, provenance) for name in names if name in self._claims)

    def contest(self, clash: Clash) -> None:
        """Take a contested name away from its first owner: from now on it answers with the conflict.

        A descriptor that loses its own name is withdrawn altogether, one that loses an alias keeps the rest. A
        permanent plugin loses nothing.
        """
        if clash.owner.permanent:
            return
        primary = self._primary.pop(clash.name, None)
        self._contested.setdefault(clash.name, clash.text)
        if primary != clash.name:
            return
        for alias in self._entries.pop(primary).descriptor.aliases:
            if self._primary.pop(alias, None) is not None:
                self._contested[alias] = clash.text

    def conflicts(self, provenance: Provenance) -> tuple[str, ...]:
        """The conflicts that cost this plugin one of its names."""
        texts = [text for name, text in self._contested.items() if self._claims[name] == provenance]
        return tuple(dict.fromkeys(texts))

    def get(self, name: str) -> T:
        """The descriptor called `name`. Raises as `entry` does."""
        return self.entry(name).descriptor

    def entry(self, name: str) -> Entry[T]:
        """The descriptor called `name` (or with that alias) and its provenance.

        Raises:
            PluginError: two plugins claim the name.
            UnknownNameError: nobody does; the message lists what exists and what could not be loaded.
        """
        if name in self._contested:
            raise PluginError(self._contested[name])
        if name not in self._primary:
            raise UnknownNameError(self._unknown(name))
        return self._entries[self._primary[name]]

    def is_contested(self, name: str) -> bool:
        """Whether plugins quarrel about the name, so that `get` answers with the conflict."""
        return name in self._contested

    def names(self) -> tuple[str, ...]:
        """Registered names without aliases, in order of registration."""
        return tuple(self._entries)

    def aliases(self, name: str) -> tuple[str, ...]:
        """The aliases under which the descriptor called `name` can be found. Raises as `entry` does."""
        descriptor = self.get(name)
        return tuple(alias for alias in descriptor.aliases if self._primary.get(alias) == descriptor.name)

    def entries(self) -> tuple[Entry[T], ...]:
        """All entries, in order of registration."""
        return tuple(self._entries.values())

    def __iter__(self) -> Iterator[T]:
        return (entry.descriptor for entry in self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._primary

    def _checked_names(self, descriptor: T, provenance: Provenance) -> tuple[str, ...]:
        names: tuple[object, ...] = (descriptor.name,)
        if not isinstance(descriptor.aliases, tuple):
            raise PluginError(
                f"{provenance} registers the {self.kind} {descriptor.name!r} with aliases={descriptor.aliases!r}; "
                "aliases is a tuple of names, as in aliases=('other',)."
            )
        checked = []
        for name in names + descriptor.aliases:
            if not isinstance(name, str) or not name or name.split() != [name]:
                raise PluginError(
                    f"{provenance} registers a {self.kind} called {name!r}; a name is text without white space."
                )
            if name in checked:
                raise PluginError(f"{provenance} names the {self.kind} {descriptor.name!r} {name!r} twice.")
            checked.append(name)
        return tuple(checked)

    def _clash(self, name: str, descriptor: T, rival: Provenance) -> Clash:
        owner = self._claims[name]
        if owner == rival:
            text = f"{rival} registers the {self.kind} {name!r} twice."
        else:
            alias = "" if name == descriptor.name else f" (there an alias of {descriptor.name!r})"
            text = (
                f"The {self.kind} {name!r} is registered by {owner} and by {rival}{alias}. "
                f"{how_to_settle(owner, rival)}"
            )
        return Clash(name=name, owner=owner, rival=rival, text=text)

    def _unknown(self, name: str) -> str:
        lead = f"no {self.kind} {name!r}."
        registered = f"Registered: {self._inventory()}." if self._entries else f"No {self.kind} is registered."
        hints = [did_you_mean(name, self._primary), not_loaded_text(self.not_loaded)]
        tail = " ".join(hint for hint in hints if hint)
        return f"{lead} {registered}" + (f"\n  {tail}" if tail else "")

    def _inventory(self) -> str:
        groups: dict[str, list[str]] = {}
        for entry in self._entries.values():
            aliases = self.aliases(entry.descriptor.name)
            label = entry.descriptor.name + (f" [alias {', '.join(aliases)}]" if aliases else "")
            groups.setdefault(entry.provenance.release, []).append(label)
        return ", ".join(f"{', '.join(labels)} ({release})" for release, labels in groups.items())


def how_to_settle(owner: Provenance, rival: Provenance) -> str:
    """What to do about a conflict between two plugins."""
    if owner.permanent:
        return (
            f"That is built in and stays; disable the other with DIFFULEX_DISABLE_PLUGINS={rival.plugin} or uninstall "
            f"{rival.dist}."
        )
    # Plugins of one name can be told apart by their distributions only.
    mine, theirs = (rival.dist, owner.dist) if owner.plugin == rival.plugin else (rival.plugin, owner.plugin)
    return (
        f"Disable one: set DIFFULEX_DISABLE_PLUGINS={mine} (or {theirs}), or give plugins=[...] with only one of them."
    )


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """A sentence that proposes the closest choice, or nothing when none is close."""
    close = difflib.get_close_matches(name, list(choices), n=1)
    return f"Did you mean {close[0]!r}?" if close else ""


def not_loaded_text(not_loaded: Iterable[NotLoaded]) -> str:
    """A sentence that names every plugin that was not loaded and why, or nothing."""
    reasons = "; ".join(str(plugin).rstrip(".") for plugin in not_loaded)
    return f"Not loaded: {reasons}." if reasons else ""
