"""How many pages the KV cache gets."""

from __future__ import annotations

from collections.abc import Iterable

import attrs
import psutil
import torch

from diffulex_core.errors import ConfigError


@attrs.frozen(kw_only=True)
class Capacity:
    """What a process could store once its weights are loaded.

    Attributes:
        page_bytes: bytes of one page over all layers.
        available: bytes that its device can still give it.
    """

    page_bytes: int
    available: int

    @classmethod
    def least(cls, capacities: Iterable[Capacity]) -> Capacity:
        """What fits everywhere, where each process stores its part of the same pages."""
        return min(capacities, key=lambda each: each.available / each.page_bytes)


def free_memory(device: torch.device) -> int:
    """Bytes that the device can still give."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free
    return psutil.virtual_memory().available


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
        available: free bytes after the weights are loaded; what `utilization` leaves is for activations.
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
        advice = "Lower max_model_len, raise gpu_memory_utilization or set num_pages."
        raise ConfigError([f"{need}, but {missing:,} bytes are missing. {advice}"])
    return min(wanted, affordable)
