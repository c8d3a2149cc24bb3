"""What every implementation of a kernel is asked before it is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import attrs

if TYPE_CHECKING:
    import torch


@attrs.frozen(kw_only=True)
class KernelCase:
    """Where the layers of one engine run; implementations answer with the reasons they cannot serve it.

    Attributes:
        device_type: "cpu", "cuda" ...
        dtype: of weights and activations.
    """

    device_type: str
    dtype: torch.dtype


class Choosable(Protocol):
    """What an engine chooses among: it tells whom it serves."""

    def reasons(self, case: KernelCase) -> Sequence[str]:
        """Why the implementation cannot serve; empty when it can."""
        ...

    def priority(self, case: KernelCase) -> int:
        """How well it serves a case that it can serve: "auto" takes the highest."""
        ...
