"""Where kernels in Triton can run, asked by all of them in the same way."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import attrs
import torch

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
"""What the kernels compute in."""


@attrs.frozen(kw_only=True)
class Processors:
    """What runs the programs of a launch.

    Attributes:
        count: multiprocessors.
        shared_bytes: most shared memory of a program. A launch that takes more fails.
    """

    count: int
    shared_bytes: int


INTERPRETER = Processors(count=8, shared_bytes=232_448)
"""Few, so that the interpreter, too, divides keys where rows are few; as roomy as those of compute capability 9.0."""


@cache
def processors_of(device: torch.device) -> Processors:
    """Those of a GPU, as Triton's driver tells what it will hold launches to, or of Triton's interpreter."""
    if interpreted():
        return INTERPRETER
    from triton.runtime import driver

    found = driver.active.utils.get_device_properties(device.index)
    return Processors(count=found["multiprocessor_count"], shared_bytes=found["max_shared_mem"])


def reasons_against(device_type: str) -> list[str]:
    """Why no Triton kernel can run there: it takes Triton, and a CUDA device or Triton's interpreter."""
    if find_spec("triton") is None:
        return ["triton is not installed (pip install 'diffulex-core[triton]')"]
    if device_type == "cuda" or (device_type == "cpu" and interpreted()):
        return []
    return [f"it runs on CUDA devices, not on {device_type!r}; TRITON_INTERPRET=1 lets the CPU interpret it"]


def interpreted() -> bool:
    """Whether Triton interprets kernels on the CPU; it decides when a kernel is defined."""
    from triton import knobs

    return bool(knobs.runtime.interpret)


def precision(dtype: torch.dtype) -> str:
    """How products of a dtype are taken: float32 on tensor cores in three parts, which keeps nearly all of its bits."""
    return "tf32x3" if dtype == torch.float32 and not interpreted() else "ieee"


def widened(dtype: torch.dtype) -> bool:
    """Whether operands must be made float32 before a product: the interpreter cannot multiply bfloat16."""
    return dtype == torch.bfloat16 and interpreted()
