"""Choosing the experts' kernel of an engine by name and by what each one can serve."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from diffulex_core.errors import IncompatibleError
from diffulex_core.kernels.case import KernelCase
from diffulex_core.kernels.choose import AUTO, Choice
from diffulex_core.kernels.moe.contract import ExpertsKernel

if TYPE_CHECKING:
    from diffulex_core.host import Host

MOE_GEMM = "moe_gemm."
"""What the names of these kernels begin with in the registry of components; `moe_gemm_impl` leaves it out."""


def select_experts_kernel(name: str, host: Host, case: KernelCase, *, barred: Collection[str] = ()) -> ExpertsKernel:
    """The kernel called `name`, or with "auto" the one of highest priority that can serve the case.

    Args:
        barred: names that "auto" leaves out.
    Raises:
        IncompatibleError: the named kernel (with "auto": every kernel) has reasons against the case; they are listed.
        UnknownNameError: no plugin registers `name`.
    """
    choice = Choice[ExpertsKernel](host=host, kind="kernel", key="moe_gemm_impl", prefix=MOE_GEMM)
    if name != AUTO:
        return choice.named(name, case)
    best = next(iter(choice.able(case, barred=barred).values()), None)
    if best is None:
        raise IncompatibleError(choice.refusals(case, barred=barred) or ["No kernel for experts is registered."])
    return best
