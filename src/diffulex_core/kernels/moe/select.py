"""Choosing the experts' kernel of an engine by name and by what each one can serve."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from diffulex_core.errors import IncompatibleError
from diffulex_core.kernels.case import KernelCase
from diffulex_core.kernels.moe.contract import ExpertsKernel

if TYPE_CHECKING:
    from diffulex_core.host import Host

MOE_GEMM = "moe_gemm."
"""What the names of these kernels begin with in the registry of components; `moe_gemm_impl` leaves it out."""
AUTO = "auto"


def select_experts_kernel(name: str, host: Host, case: KernelCase, *, barred: Collection[str] = ()) -> ExpertsKernel:
    """The kernel called `name`, or with "auto" the one of highest priority that can serve the case.

    Args:
        barred: names that "auto" leaves out.
    Raises:
        IncompatibleError: the named kernel (with "auto": every kernel) has reasons against the case; they are listed.
        UnknownNameError: no plugin registers `name`.
    """
    if name != AUTO:
        kernel = _load(MOE_GEMM + name, host)
        reasons = kernel.reasons(case)
        if not reasons:
            return kernel
        able = [other for other, found in _by_priority(host, case) if not found.reasons(case)]
        advice = f" Those that can: {', '.join(able)}." if able else ""
        raise IncompatibleError([_refusal(name, reasons) + advice])
    refusals = []
    for other, kernel in _by_priority(host, case):
        if other in barred:
            continue
        reasons = kernel.reasons(case)
        if not reasons:
            return kernel
        refusals.append(_refusal(other, reasons))
    raise IncompatibleError(refusals or ["No kernel for experts is registered."])


def _by_priority(host: Host, case: KernelCase) -> list[tuple[str, ExpertsKernel]]:
    """Every registered kernel and its name without the common beginning, the best first."""
    names = [entry.descriptor.name for entry in host.components["kernel"].entries()]
    kernels = [(name.removeprefix(MOE_GEMM), _load(name, host)) for name in names if name.startswith(MOE_GEMM)]
    return sorted(kernels, key=lambda named: -named[1].priority(case))


def _load(name: str, host: Host) -> ExpertsKernel:
    entry = host.components["kernel"].entry(name)
    kernel: ExpertsKernel = host.load(entry.descriptor.factory, provenance=entry.provenance)()
    return kernel


def _refusal(name: str, reasons: Sequence[str]) -> str:
    return f"moe_gemm_impl={name!r} cannot serve here: {'; '.join(reasons)}."
