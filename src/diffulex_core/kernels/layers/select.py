"""Choosing the layers' kernels of an engine by name and by what each of them can serve."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from diffulex_core.errors import IncompatibleError
from diffulex_core.kernels.case import KernelCase
from diffulex_core.kernels.layers.contract import LayerKernels

if TYPE_CHECKING:
    from diffulex_core.host import Host

AUTO = "auto"
TORCH = "torch"
"""No kernels: the layers' own code."""


def select_layer_kernels(
    name: str, host: Host, case: KernelCase, *, barred: Collection[str] = ()
) -> LayerKernels | None:
    """The kernels called `name`; with "auto" those of highest priority that can serve the case, if any is above 0.

    Args:
        barred: names that "auto" leaves out.
    Returns:
        None where the layers' own torch code is to run.
    Raises:
        IncompatibleError: the named kernels have reasons against the case; they are listed.
        UnknownNameError: no plugin registers `name`.
    """
    if name == TORCH:
        return None
    if name == AUTO:
        able = [found for found in _registered(host, barred) if not found.reasons(case) and found.priority(case) > 0]
        return max(able, key=lambda found: found.priority(case), default=None)
    found = _load(name, host)
    if reasons := found.reasons(case):
        raise IncompatibleError([_refusal(name, reasons)])
    return found


def _registered(host: Host, barred: Collection[str]) -> list[LayerKernels]:
    names = [entry.descriptor.name for entry in host.components["layer_kernels"].entries()]
    return [_load(name, host) for name in names if name not in barred]


def _load(name: str, host: Host) -> LayerKernels:
    entry = host.components["layer_kernels"].entry(name)
    kernels: LayerKernels = host.load(entry.descriptor.factory, provenance=entry.provenance)()
    return kernels


def _refusal(name: str, reasons: Sequence[str]) -> str:
    return f"layer_impl={name!r} cannot serve here: {'; '.join(reasons)}. layer_impl='torch' runs everywhere."
