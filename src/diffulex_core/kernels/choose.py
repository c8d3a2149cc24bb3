"""Choosing among the registered kernels of one kind, by name and by what each of them can serve."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

import attrs

from diffulex_core.errors import IncompatibleError
from diffulex_core.kernels.case import Choosable, KernelCase

if TYPE_CHECKING:
    from diffulex_core.descriptors import ComponentKind
    from diffulex_core.host import Host

AUTO = "auto"
Kernels = TypeVar("Kernels", bound=Choosable)


@attrs.frozen(kw_only=True)
class Choice(Generic[Kernels]):
    """The kernels that a configuration key names.

    Attributes:
        host: the plugins that register them.
        kind: of the components.
        key: the configuration key, for messages.
        prefix: what their names begin with in the registry; the key leaves it out.
        fallback: what a refusal recommends; empty = those that can serve.
    """

    host: Host
    kind: ComponentKind
    key: str
    prefix: str = ""
    fallback: str = ""

    def named(self, name: str, case: KernelCase) -> Kernels:
        """The one called `name`.

        Raises:
            IncompatibleError: it has reasons against the case; they are listed.
            UnknownNameError: no plugin registers `name`.
        """
        found = self._load(self.prefix + name)
        if reasons := found.reasons(case):
            raise IncompatibleError([self._refusal(name, reasons) + self._advice(case)])
        return found

    def able(self, case: KernelCase, *, barred: Collection[str] = ()) -> dict[str, Kernels]:
        """Those that can serve the case, by their names as the key has them, the highest priority first.

        Args:
            barred: names that are left out.
        """
        serving = [(name, each) for name, each in self._all(barred) if not each.reasons(case)]
        return dict(sorted(serving, key=lambda named: -named[1].priority(case)))

    def refusals(self, case: KernelCase, *, barred: Collection[str] = ()) -> list[str]:
        """Why those that cannot serve the case cannot, a sentence each."""
        told = [(name, each.reasons(case)) for name, each in self._all(barred)]
        return [self._refusal(name, reasons) for name, reasons in told if reasons]

    def _all(self, barred: Collection[str]) -> Iterator[tuple[str, Kernels]]:
        for whole in [entry.descriptor.name for entry in self.host.components[self.kind].entries()]:
            name = whole.removeprefix(self.prefix)
            if whole.startswith(self.prefix) and name not in barred:
                yield name, self._load(whole)

    def _load(self, name: str) -> Kernels:
        entry = self.host.components[self.kind].entry(name)
        made: Kernels = self.host.load(entry.descriptor.factory, provenance=entry.provenance)()
        return made

    def _refusal(self, name: str, reasons: Sequence[str]) -> str:
        return f"{self.key}={name!r} cannot serve here: {'; '.join(reasons)}."

    def _advice(self, case: KernelCase) -> str:
        if self.fallback:
            return f" {self.key}={self.fallback!r} runs everywhere."
        able = self.able(case)
        return f" Those that can: {', '.join(able)}." if able else ""
