"""Layer kernels that a test can ask how often each was called; what they do is what their twins in torch do."""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar

from torch import Tensor

from diffulex_core.kernels.case import KernelCase
from diffulex_core.kernels.layers.twins import TorchLayers

OPERATIONS = ("normed", "add_and_norm", "norm_and_add", "gated", "turn_and_store", "route", "blend")


class TwinKernels(TorchLayers):
    """A sound implementation for the CPU, which counts its calls, and the rows that it selects for."""

    calls: ClassVar[Counter[str]] = Counter()

    def reasons(self, case: KernelCase) -> list[str]:
        return [] if case.device_type == "cpu" else ["it is for tests on the CPU"]

    def select(self, hidden: Tensor, *arguments: Any) -> Any:
        self.calls["select"] += len(hidden)
        return super().select(hidden, *arguments)


def _counted(name: str) -> Any:
    plain = getattr(TorchLayers, name)

    def call(self: TwinKernels, *arguments: Any, **named: Any) -> Any:
        self.calls[name] += 1
        return plain(self, *arguments, **named)

    return call


for _name in OPERATIONS:
    setattr(TwinKernels, _name, _counted(_name))
