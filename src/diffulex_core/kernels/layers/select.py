"""Choosing the layers' kernels of an engine by name and by what each of them can serve."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from diffulex_core.kernels.case import KernelCase
from diffulex_core.kernels.choose import AUTO, Choice
from diffulex_core.kernels.layers.contract import LayerKernels

if TYPE_CHECKING:
    from diffulex_core.host import Host

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
    choice = Choice[LayerKernels](host=host, kind="layer_kernels", key="layer_impl", fallback=TORCH)
    if name != AUTO:
        return choice.named(name, case)
    best = next(iter(choice.able(case, barred=barred).values()), None)
    return None if best is None or best.priority(case) <= 0 else best
