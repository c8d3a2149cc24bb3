"""Choosing the attention backend of an engine by name and by what each one can serve."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from diffulex_core.attention.case import AttentionCase
from diffulex_core.errors import IncompatibleError
from diffulex_core.plugin import AttentionBackendPlugin
from diffulex_core.protocols import AttentionBackend
from diffulex_core.registry import Entry

if TYPE_CHECKING:
    from diffulex_core.host import Host

AUTO = "auto"


def select_backend(name: str, host: Host, case: AttentionCase) -> AttentionBackend:
    """The backend called `name`, or with "auto" the one of highest priority that can serve the case.

    Raises:
        IncompatibleError: the named backend (with "auto": every backend) has reasons against the case; they are listed.
        UnknownNameError: no plugin registers `name`.
    """
    entry = _best(host, case) if name == AUTO else _named(name, host, case)
    backend: AttentionBackend = host.load(entry.descriptor.impl, provenance=entry.provenance)()
    return backend


def probe_backends(host: Host, case: AttentionCase) -> Mapping[str, tuple[str, ...]]:
    """Reasons against the case of every registered backend, best priority first; none means that it can serve."""
    entries = sorted(host.attention.entries(), key=lambda entry: -entry.descriptor.priority)
    return {entry.descriptor.name: _reasons(entry, host, case) for entry in entries}


def _best(host: Host, case: AttentionCase) -> Entry[AttentionBackendPlugin]:
    found = probe_backends(host, case)
    for name, reasons in found.items():
        if not reasons:
            return host.attention.entry(name)
    refusals = [_refusal(name, reasons) for name, reasons in found.items()]
    raise IncompatibleError(refusals or ["No attention backend is registered."])


def _named(name: str, host: Host, case: AttentionCase) -> Entry[AttentionBackendPlugin]:
    entry = host.attention.entry(name)
    reasons = _reasons(entry, host, case)
    if reasons:
        able = [other for other, against in probe_backends(host, case).items() if not against]
        advice = f" Backends that can: {', '.join(able)}." if able else ""
        raise IncompatibleError([_refusal(name, reasons) + advice])
    return entry


def _reasons(entry: Entry[AttentionBackendPlugin], host: Host, case: AttentionCase) -> tuple[str, ...]:
    return tuple(host.load(entry.descriptor.probe, provenance=entry.provenance)(case))


def _refusal(name: str, reasons: tuple[str, ...]) -> str:
    return f"attn_impl={name!r} cannot serve this model: {'; '.join(reasons)}."
