"""Kernels that `auto` takes before all others, for a plugin of a test's own."""

from __future__ import annotations

from diffulex_core.kernels.case import KernelCase
from diffulex_core.kernels.moe.grouped import TorchExperts
from tests.integration.twin_kernels import TwinKernels


class Foremost(TwinKernels):
    """Layer kernels that `auto` takes before all others."""

    def priority(self, case: KernelCase) -> int:
        return 1000


class ForemostExperts(TorchExperts):
    """The same for experts."""

    def priority(self, case: KernelCase) -> int:
        return 1000
