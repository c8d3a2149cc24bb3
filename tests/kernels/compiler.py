"""Compiles every launch for a device that need not be there, and runs none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import attrs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction


@attrs.frozen
class Absent:
    """What Triton asks its driver before it compiles.

    Attributes:
        capability: compute capability, times ten. As the device's number it also keeps caches apart.
    """

    capability: int

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)


@attrs.frozen(kw_only=True)
class Compiled:
    """A launch that would have been: the kernel's name, its warps, and the shared memory of a program in bytes."""

    name: str
    warps: int
    shared_bytes: int


@contextmanager
def compiling(capability: int) -> Iterator[list[Compiled]]:
    """Launches are compiled to machine code for `capability`, and listed; what they should write is left open."""
    launched: list[Compiled] = []
    launch = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **named: Any) -> None:
        kernel = launch(self, *args, grid=grid, warmup=True, **named)
        made = kernel.metadata
        launched.append(Compiled(name=self.fn.__name__, warps=made.num_warps, shared_bytes=made.shared))

    with mock.patch.object(driver, "_active", Absent(capability)), mock.patch.object(JITFunction, "run", compile_only):
        yield launched
