"""Timing on a device: calls in turns, each behind a cold cache, and what the device can do at best."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

import attrs
import torch

Call = Callable[[], object]
FLUSH_BYTES = 512 * 2**20
"""Written before every call that is timed: more than the caches hold, and time enough to launch what follows."""


class Timer(Protocol):
    """Times calls on one device."""

    @property
    def device(self) -> torch.device:
        """Where tensors live."""
        ...

    def once(self, call: Call) -> float:
        """Seconds that the device works on one call."""
        ...


class CudaTimer:
    """Times by events of the device's own clock."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._flushed = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)

    @property
    def device(self) -> torch.device:
        """The CUDA device."""
        return self._device

    def once(self, call: Call) -> float:
        """Seconds between two events around the call. They are recorded while the device still flushes its caches, so
        that what the host takes to launch a few kernels does not count."""
        began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self._flushed.zero_()
        began.record()
        call()
        ended.record()
        torch.cuda.synchronize(self._device)
        return float(began.elapsed_time(ended)) / 1000


@attrs.frozen(kw_only=True)
class Limits:
    """What the device was measured to do.

    Attributes:
        bandwidth: bytes per second, read and written, of a copy.
        rate: floating-point operations per second of a bf16 matrix product.
    """

    bandwidth: float
    rate: float


@attrs.frozen(kw_only=True)
class Cost:
    """What a piece of work must move and compute, whoever does it.

    Attributes:
        bytes: read and written, each once.
        flops: multiplications and additions of its matrix products.
    """

    bytes: float = 0.0
    flops: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(bytes=self.bytes + other.bytes, flops=self.flops + other.flops)

    def least_seconds(self, limits: Limits) -> float:
        """The longer of moving and computing at full speed."""
        return max(self.bytes / limits.bandwidth, self.flops / limits.rate)


def medians(timer: Timer, calls: Mapping[str, Call], *, rounds: int, warm_ups: int = 2) -> dict[str, float]:
    """Median seconds of each call. All take one turn in each round, and odd rounds go backwards."""
    kept: dict[str, list[float]] = {name: [] for name in calls}
    for index in range(-warm_ups, rounds):
        for name in calls if index % 2 == 0 else reversed(calls):
            seconds = timer.once(calls[name])
            if index >= 0:
                kept[name].append(seconds)
    return {name: statistics.median(times) for name, times in kept.items()}


def measure_limits(
    timer: Timer, *, copied: int = 2**30, widths: tuple[int, ...] = (4096, 8192), rounds: int = 7
) -> Limits:
    """Copy `copied` bytes and multiply square bf16 matrices; the best median of each kind counts."""
    device = timer.device
    source = torch.empty(copied, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    [copy] = medians(timer, {"copy": partial(target.copy_, source)}, rounds=rounds).values()
    del source, target
    rates = []
    for width in widths:
        one, two = (torch.randn(width, width, device=device).to(torch.bfloat16) for _ in range(2))
        [product] = medians(timer, {"product": partial(torch.matmul, one, two)}, rounds=rounds).values()
        rates.append(2 * width**3 / product)
    return Limits(bandwidth=2 * copied / copy, rate=max(rates))
