"""What this machine can do at best, and how much of it a run reached."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import attrs
from benchmarks.bench.networks import NETWORKS, Network
from benchmarks.bench.work import Answer, Work

ITEM_BYTES = {"float32": 4, "bfloat16": 2}


@attrs.frozen(kw_only=True)
class Spent:
    """Arithmetic and traffic that the answers of a run cannot do without: operations, and bytes of weights."""

    flops: float
    bytes: float


def weight_flops(network: Network, answer: Answer) -> float:
    """Operations of a run's products with weights: two for each weight and row."""
    return 2.0 * (answer.rows * network.body + answer.head_rows * network.head)


def spent(network: Network, answer: Answer, work: Work, dtype: str) -> Spent:
    """What a run took: products with the weights for its rows, scores and sums for the keys that they see.

    Keys are counted as those of a whole canvas where all rows are fed in every step, and as the mean over the steps of
    an answer that grows from the prompt where blocks are. Every step reads each weight once.
    """
    canvas = answer.rows >= answer.steps * work.batch * (work.prompt + work.output)
    keys = work.prompt + (work.output if canvas else work.output / 2)
    attention = 4 * answer.rows * keys * network.hidden * network.layers
    weights = network.body + network.head
    return Spent(flops=weight_flops(network, answer) + attention, bytes=answer.steps * weights * ITEM_BYTES[dtype])


def fraction(found: Spent, seconds: float, limits: dict[str, Any], dtype: str) -> float:
    """Share of the time that the machine would need at least: at its best GEMM rate, or reading the weights."""
    least = max(found.flops / limits["gemm"][dtype]["best"], found.bytes / limits["read"])
    return float(least / seconds)


def measure_limits(seconds: float = 0.4) -> dict[str, Any]:
    """GEMM rates (flops/s) at the networks' shapes for each dtype, and bytes/s of reading and of copying memory.

    Args:
        seconds: spent on each figure; the best repetition counts.
    """
    import torch
    from torch.nn import functional

    from diffulex_core.layers.blocked import blocked, multiply, usable

    rates: dict[str, dict[str, float]] = {}
    with torch.inference_mode():
        for dtype in ITEM_BYTES:
            kind = getattr(torch, dtype)
            found: dict[str, float] = {}
            for network in (NETWORKS["35M"], NETWORKS["150M"]):
                for rows in (8, 32, 320, 768):
                    x = torch.randn(rows, network.hidden).to(kind)
                    weight = torch.randn(2 * network.ffn, network.hidden).to(kind)
                    flops, label = 2 * weight.numel() * rows, f"{rows} x {network.hidden} x {2 * network.ffn}"
                    found[f"{label}, plain"] = flops / _best(lambda: functional.linear(x, weight), seconds)  # noqa: B023
                    if usable(kind):
                        packed = blocked(weight)
                        found[f"{label}, blocked"] = flops / _best(lambda: multiply(x, packed, None), seconds)  # noqa: B023
            rates[dtype] = {"best": max(found.values()), **found}
        numbers = torch.ones(64 * 2**20)  # 256 MiB, more than any cache
        target = torch.empty_like(numbers)
        read = numbers.nbytes / _best(numbers.sum, seconds)
        copied = 2 * numbers.nbytes / _best(lambda: target.copy_(numbers), seconds)
    return {"gemm": rates, "read": max(read, copied), "copy": copied}


def _best(run: Callable[[], object], seconds: float) -> float:
    run()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - began)
    return best
