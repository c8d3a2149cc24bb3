"""Choosing the attention backend of an engine by name and by what each one can serve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from diffulex_core.attention.case import AttentionCase
from diffulex_core.descriptors import AttentionBackendPlugin
from diffulex_core.errors import IncompatibleError
from diffulex_core.protocols import AttentionBackend
from diffulex_core.registry import Entry

if TYPE_CHECKING:
    from diffulex_core.host import Host

AUTO = "auto"


def select_backend(name: str, host: Host, *cases: AttentionCase) -> AttentionBackend:
    """The backend called `name`, or with "auto" the one of highest priority that can serve the cases.

    Args:
        name: a registered name, or "auto".
        host: the plugins.
        cases: what it must serve; several where the layers of a network differ in their heads.
    Raises:
        IncompatibleError: the named backend (with "auto": every backend) has reasons against a case; they are listed.
        UnknownNameError: no plugin registers `name`.
    """
    entry = _best(host, cases) if name == AUTO else _named(name, host, cases)
    backend: AttentionBackend = host.load(entry.descriptor.impl, provenance=entry.provenance)()
    return backend


def probe_backends(host: Host, *cases: AttentionCase) -> Mapping[str, tuple[str, ...]]:
    """Reasons against the cases of every registered backend, best priority first; none means that it can serve."""
    return {entry.descriptor.name: _reasons(entry, host, cases) for entry in _by_priority(host)}


def _by_priority(host: Host) -> list[Entry[AttentionBackendPlugin]]:
    return sorted(host.attention.entries(), key=lambda entry: -entry.descriptor.priority)


def _best(host: Host, cases: Sequence[AttentionCase]) -> Entry[AttentionBackendPlugin]:
    refusals = []
    for entry in _by_priority(host):  # one by one: a probe may import a large package
        reasons = _reasons(entry, host, cases)
        if not reasons:
            return entry
        refusals.append(_refusal(entry.descriptor.name, reasons))
    raise IncompatibleError(refusals or ["No attention backend is registered."])


def _named(name: str, host: Host, cases: Sequence[AttentionCase]) -> Entry[AttentionBackendPlugin]:
    entry = host.attention.entry(name)
    reasons = _reasons(entry, host, cases)
    if reasons:
        able = [other for other, against in probe_backends(host, *cases).items() if not against]
        advice = f" Backends that can: {', '.join(able)}." if able else ""
        raise IncompatibleError([_refusal(name, reasons) + advice])
    return entry


def _reasons(entry: Entry[AttentionBackendPlugin], host: Host, cases: Sequence[AttentionCase]) -> tuple[str, ...]:
    probe = host.load(entry.descriptor.probe, provenance=entry.provenance)
    return tuple(dict.fromkeys(reason for case in cases for reason in probe(case)))


def _refusal(name: str, reasons: tuple[str, ...]) -> str:
    return f"attn_impl={name!r} cannot serve this model: {'; '.join(reasons)}."
