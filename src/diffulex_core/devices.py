"""Which device and which dtype "auto" means here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from diffulex_core.errors import ConfigError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_devices(device: str, device_ids: tuple[int, ...], count: int) -> tuple[torch.device, ...]:
    """The devices of `count` processes. A CUDA device serves one of them; on the CPU they share it.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:i".
        device_ids: CUDA devices in the order of the processes; empty = the first ones.
        count: processes.
    Raises:
        ConfigError: there are too few CUDA devices.
    """
    there = torch.cuda.device_count()
    if device == "auto":
        device = "cuda" if there or device_ids else "cpu"
    chosen = torch.device(device)
    if chosen.type != "cuda":
        return (chosen,) * count
    seen = f"{there} CUDA device{'s' * (there != 1)}, numbered from 0" if there else "no CUDA device"
    if count > 1 and not device_ids and (chosen.index is not None or count > there):
        wanted = f"{chosen} is" if chosen.index is not None else f"{count} CUDA devices are"
        advice = (
            "Name the devices in device_ids, lower tensor_parallel_size or data_parallel_size, or use device='cpu'."
        )
        raise ConfigError(
            [f"{wanted} wanted for {count} processes, but each needs its own and torch sees {seen}. {advice}"]
        )
    indices = device_ids[:count] or ((chosen.index,) if chosen.index is not None else range(count))
    devices = tuple(torch.device("cuda", index) for index in indices)
    for each in devices:
        if each.index >= there:
            raise ConfigError([f"device {each} is wanted, but torch sees {seen}. Use device='cpu' or one that exists."])
    return devices


def choose_dtype(dtype: str, checkpoint: Mapping[str, Any], device: torch.device) -> torch.dtype:
    """The dtype that "auto" means: float32 on the CPU, elsewhere the checkpoint's own."""
    if dtype != "auto":
        return DTYPES[dtype]
    if device.type == "cpu":
        return torch.float32
    stored = checkpoint.get("dtype") or checkpoint.get("torch_dtype")
    return DTYPES.get(str(stored).removeprefix("torch."), torch.bfloat16)
