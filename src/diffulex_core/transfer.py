"""Numbers on their way from the host to the device, without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def on_device(
    values: NDArray[Any] | Sequence[int] | Sequence[float], device: torch.device, dtype: torch.dtype | None = None
) -> Tensor:
    """The numbers as a tensor on `device`; on the CPU it shares an array's memory where the dtype is the same.

    A copy out of pageable memory may wait for all that the device has been given, so they go through pinned memory.

    Args:
        values: an array, or whole or floating-point numbers (int64 and float64).
        device: where to.
        dtype: of the tensor; None = that of the numbers.
    """
    near = torch.from_numpy(np.asarray(values))
    if dtype is not None:
        near = near.to(dtype)
    if device.type == "cuda":
        near = near.pin_memory()
    return near.to(device, non_blocking=True)
