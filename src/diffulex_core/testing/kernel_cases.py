"""Which cases a kernel serves on this machine, and whether it says so as engines ask."""

from __future__ import annotations

from collections.abc import Callable

import torch

from diffulex_core.kernels.case import Choosable, KernelCase
from diffulex_core.testing.check import CheckFailed

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def served(made: Choosable) -> list[KernelCase]:
    """What it serves on this machine."""
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    cases = [KernelCase(device_type=device, dtype=dtype) for device in devices for dtype in DTYPES]
    return [case for case in cases if not made.reasons(case)]


def serves_nothing_here(factory: Callable[[], Choosable]) -> str | None:
    """Why there is nothing to compute with it; None where there is."""
    try:
        found = served(factory())
    except Exception:  # noqa: BLE001 - reasons that raise are what another check tells of
        return "its `reasons` raises"
    return None if found else "it refuses every case on the devices of this machine"


def require_clear_answers(factory: Callable[[], Choosable]) -> None:
    """Raise CheckFailed unless `reasons` gives sentences, the same each time, and `priority` a whole number."""
    for device in ("cpu", "cuda", "xpu"):
        for dtype in (*DTYPES, torch.float64):
            case = KernelCase(device_type=device, dtype=dtype)
            first, again = factory().reasons(case), factory().reasons(case)
            if isinstance(first, str) or list(first) != list(again) or not all(type(each) is str for each in first):
                raise CheckFailed(f"`reasons` of {case} is {first!r}, and then {again!r}; expected are sentences.")
            if not list(first) and type(factory().priority(case)) is not int:
                raise CheckFailed(f"`priority` of {case} is {factory().priority(case)!r}, no whole number.")
