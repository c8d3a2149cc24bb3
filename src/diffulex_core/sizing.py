"""How many pages the KV cache gets: what memory is free, what the largest step needs of it, and what is left."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

import attrs
import psutil
import torch

from diffulex_core.descriptors import Capability
from diffulex_core.errors import ConfigError
from diffulex_core.graphs.choose import limits_of
from diffulex_core.warmup import large_step

if TYPE_CHECKING:
    from diffulex_core.config import EngineConfig
    from diffulex_core.protocols import ModelRunner


@attrs.frozen(kw_only=True)
class Capacity:
    """What a process could store once its weights are loaded.

    Attributes:
        page_bytes: bytes of one page over all layers.
        available: bytes that its device can still give it, without those that the largest step needs.
    """

    page_bytes: int
    available: int

    @classmethod
    def least(cls, capacities: Iterable[Capacity]) -> Capacity:
        """What fits everywhere, where each process stores its part of the same pages."""
        return min(capacities, key=lambda each: each.available / each.page_bytes)


class MemoryMeter(Protocol):
    """Measures a device's memory."""

    def free(self) -> int:
        """Bytes that the device can still give."""
        ...

    def peak(self, run: Callable[[], object]) -> int:
        """Most bytes that `run` holds at a time beside what is held before it; 0, and it is not run, where steps take
        what the pages leave."""
        ...


@attrs.frozen
class HostMemory:
    """The machine's memory. Nothing is measured: `gpu_memory_utilization` leaves a share of it to everything else."""

    def free(self) -> int:
        """See `MemoryMeter`."""
        return psutil.virtual_memory().available

    def peak(self, run: Callable[[], object]) -> int:
        """See `MemoryMeter`."""
        return 0


@attrs.frozen
class CudaMemory:
    """A CUDA device's memory, as torch's allocator takes it, so that gaps between tensors count."""

    device: torch.device

    def free(self) -> int:
        """See `MemoryMeter`."""
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(self.device)[0]

    def peak(self, run: Callable[[], object]) -> int:
        """See `MemoryMeter`."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_reserved(self.device)
        run()
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_reserved(self.device) - before


def memory_meter(device: torch.device) -> MemoryMeter:
    """The meter of a device."""
    return CudaMemory(device) if device.type == "cuda" else HostMemory()


def step_memory(
    config: EngineConfig, meter: MemoryMeter, make_runner: Callable[[int], ModelRunner], *, captures: bool
) -> int:
    """Bytes that the largest step holds for a moment, and captured steps for good.

    Nothing is measured where the user says how many pages there are, or wants no forward before the first request.

    Args:
        config: the configuration.
        meter: measures a step.
        make_runner: a runner with so many pages.
        captures: whether steps of static shape keep memory of their own.
    Raises:
        ConfigError: the largest step does not fit.
    """
    limits, budget = limits_of(config), config.schedule.max_num_batched_tokens
    if config.cache.num_pages > 0 or config.runtime.skip_warmup:
        return 0
    needed = _peak(config, meter, make_runner, budget)
    if captures and limits is not None:
        needed += _peak(config, meter, make_runner, min(budget, limits.decode_rows))
    return needed


def _peak(config: EngineConfig, meter: MemoryMeter, make_runner: Callable[[int], ModelRunner], rows: int) -> int:
    """Bytes of a step of so many rows, as many of them sampled as may be."""
    page_size = config.cache.page_size
    window_rows = min(config.decoding.block_size * config.decoding.buffer_size, rows)
    pages = -(-window_rows // page_size) + 1
    plan = large_step(
        rows=rows,
        window_rows=window_rows,
        sampled_windows=config.schedule.max_num_reqs,
        length=max(config.schedule.max_model_len, window_rows),
        pages=pages,
        page_size=page_size,
        remember=Capability.SELF_CONDITIONING in config.strategy.requires,
    )

    def run() -> None:
        runner = make_runner(pages)
        runner.execute(plan)
        runner.close()

    try:
        return meter.peak(run)
    except torch.OutOfMemoryError as error:
        need = f"A step of {rows} rows (max_num_batched_tokens) does not fit beside the weights"
        advice = "Lower max_num_batched_tokens or max_num_reqs, or set max_logits_tokens."
        raise ConfigError([f"{need}: {error}. {advice}"]) from error


def choose_num_pages(
    *, requested: int, page_bytes: int, wanted: int, least: int, utilization: float, available: int
) -> int:
    """Pages to allocate.

    Args:
        requested: the user's `num_pages`; -1 = automatic.
        page_bytes: bytes of one page over all layers.
        wanted: pages that let `max_num_reqs` requests reach `max_model_len`; more would never be used.
        least: pages that a single request of `max_model_len` needs.
        utilization: share of `available` that may be used.
        available: free bytes after the weights are loaded, less those that the largest step needs.
    Raises:
        ConfigError: the pages asked for, or those of one request of full length, do not fit; the message says how many
            bytes are missing.
    """
    if requested > 0:
        if requested * page_bytes > available:
            need = f"num_pages is {requested}, which takes {requested * page_bytes:,} bytes, but {available:,} are free"
            raise ConfigError([f"{need}. Use at most {available // page_bytes}, or -1 to derive it from the memory."])
        return requested
    affordable = int(available * utilization) // page_bytes
    if affordable < least:
        missing = least * page_bytes - int(available * utilization)
        need = f"The KV cache needs {least} pages of {page_bytes:,} bytes for one request of max_model_len"
        advice = "Lower max_model_len or max_num_batched_tokens, raise gpu_memory_utilization or set num_pages."
        raise ConfigError([f"{need}, but {missing:,} bytes are missing. {advice}"])
    return min(wanted, affordable)
