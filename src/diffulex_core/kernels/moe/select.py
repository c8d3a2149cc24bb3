"""Choosing the experts' kernel of an engine by name and by what each one can serve."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import attrs

from diffulex_core.errors import IncompatibleError
from diffulex_core.kernels.moe.contract import ExpertsCase, ExpertsKernel

if TYPE_CHECKING:
    from diffulex_core.host import Host

MOE_GEMM = "moe_gemm."
"""What the names of these kernels begin with in the registry of components; `moe_gemm_impl` leaves it out."""
AUTO = "auto"


@attrs.frozen(kw_only=True)
class Probed:
    """A kernel and the reasons that it cannot serve, none when it can."""

    kernel: ExpertsKernel
    reasons: tuple[str, ...]


def select_experts_kernel(name: str, host: Host, case: ExpertsCase) -> ExpertsKernel:
    """The kernel called `name`, or with "auto" the one of highest priority that can serve the case.

    Raises:
        IncompatibleError: the named kernel has reasons against the case; they are listed.
        UnknownNameError: no plugin registers `name`.
    """
    if name != AUTO:
        return _named(name, host, case)
    able = [probed.kernel for probed in probe_experts_kernels(host, case).values() if not probed.reasons]
    return max(able, key=lambda kernel: kernel.priority(case))


def probe_experts_kernels(host: Host, case: ExpertsCase) -> Mapping[str, Probed]:
    """Every registered kernel by name."""
    names = [entry.descriptor.name for entry in host.components["kernel"].entries()]
    return {name.removeprefix(MOE_GEMM): _probe(name, host, case) for name in names if name.startswith(MOE_GEMM)}


def _named(name: str, host: Host, case: ExpertsCase) -> ExpertsKernel:
    probed = _probe(MOE_GEMM + name, host, case)
    if probed.reasons:
        able = [other for other, found in probe_experts_kernels(host, case).items() if not found.reasons]
        reasons = "; ".join(probed.reasons)
        raise IncompatibleError(
            [f"moe_gemm_impl={name!r} cannot serve here: {reasons}. Those that can: {', '.join(able)}."]
        )
    return probed.kernel


def _probe(name: str, host: Host, case: ExpertsCase) -> Probed:
    entry = host.components["kernel"].entry(name)
    kernel: ExpertsKernel = host.load(entry.descriptor.factory, provenance=entry.provenance)()
    return Probed(kernel=kernel, reasons=tuple(kernel.reasons(case)))
