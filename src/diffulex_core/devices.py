"""Which device and which dtype "auto" means here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from diffulex_core.errors import ConfigError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(device: str, device_ids: tuple[int, ...]) -> torch.device:
    """The device that "auto", "cpu", "cuda" or "cuda:i" means here; `device_ids` picks among CUDA devices.

    Raises:
        ConfigError: there is no such CUDA device.
    """
    count = torch.cuda.device_count()
    if device == "auto":
        device = "cuda" if count or device_ids else "cpu"
    if device == "cuda":
        device = f"cuda:{device_ids[0] if device_ids else 0}"
    chosen = torch.device(device)
    if chosen.type == "cuda" and chosen.index >= count:
        seen = f"{count} CUDA device{'s' * (count != 1)}, numbered from 0" if count else "no CUDA device"
        raise ConfigError([f"device {chosen} is wanted, but torch sees {seen}. Use device='cpu' or one that exists."])
    return chosen


def choose_dtype(dtype: str, checkpoint: Mapping[str, Any], device: torch.device) -> torch.dtype:
    """The dtype that "auto" means: float32 on the CPU, elsewhere the checkpoint's own."""
    if dtype != "auto":
        return DTYPES[dtype]
    if device.type == "cpu":
        return torch.float32
    stored = checkpoint.get("dtype", checkpoint.get("torch_dtype", "bfloat16"))
    return DTYPES.get(str(stored), torch.bfloat16)
