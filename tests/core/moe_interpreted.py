"""Runs the Triton kernels of the experts in Triton's interpreter and prints what it found, as JSON.

A process of its own, because Triton decides when its kernels are defined whether they are compiled or interpreted.
"""

from __future__ import annotations

import json
import sys
from itertools import product
from typing import Any

import torch

from diffulex_core.host import Host
from diffulex_core.kernels.moe import ExpertsCase, select_experts_kernel
from diffulex_core.kernels.moe.fused import TritonExperts
from diffulex_core.kernels.moe.naive import NaiveExperts
from diffulex_core.layers.moe import Activation
from diffulex_core.sampling_params import SamplingParams
from tests.integration.engines import engine, vectors

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# rows, slots, experts, hidden, size: one of everything; more than a tile each way, odd; tiles of 64 rows.
SHAPES = ((0, 2, 3, 8, 5), (1, 1, 1, 8, 5), (9, 4, 4, 70, 65), (100, 2, 3, 20, 12))


def error(shape: tuple[int, int, int, int, int], dtype: torch.dtype, activation: Activation) -> float:
    """The largest difference from the definition, relative to the largest output."""
    rows, slots, experts, hidden, size = shape
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, hidden, generator=generator).to(dtype)
    ids = torch.randint(-1, experts, (rows, slots), generator=generator).int()
    weights = torch.rand(rows, slots, generator=generator).masked_fill(ids % 5 == 1, 0.0)
    w13 = (torch.randn(experts, 2 * size, hidden, generator=generator) * hidden**-0.5).to(dtype)
    w2 = (torch.randn(experts, hidden, size, generator=generator) * size**-0.5).to(dtype)
    if experts > 3:
        w13[3], w2[3] = torch.nan, torch.nan
        ids[ids == 3] = -1
    arguments = (x, ids, weights, w13, w2, activation)
    found, exact = TritonExperts()(*arguments), NaiveExperts()(*arguments)
    assert found.dtype == dtype
    if rows == 0:
        return float(found.shape != exact.shape)
    return float((found.float() - exact.float()).abs().max() / exact.float().abs().max().clamp(min=1e-6))


def decoded() -> list[list[int]]:
    """The start of a recorded answer, and what an engine says whose experts are Triton's."""
    recording = vectors("llada2-b1")
    case: dict[str, Any] = recording["cases"][0]
    with engine("llada2", **recording["config"], moe_gemm_impl="triton", skip_warmup=True) as ready:
        [answer] = ready.generate([case["prompt"]], SamplingParams(**recording["sampling"], max_tokens=4))
    return [case["tokens"][:4], list(answer.token_ids)]


def main() -> None:
    host = Host.discover([], {})
    case = ExpertsCase(device_type="cpu", dtype=torch.float32)
    found = {
        "errors": {
            name: max(error(shape, dtype, activation) for shape, activation in product(SHAPES, ("silu", "gelu_tanh")))
            for name, dtype in DTYPES.items()
        },
        "named": type(select_experts_kernel("triton", host, case)).__name__,
        "auto": type(select_experts_kernel("auto", host, case)).__name__,
        "decoded": decoded(),
    }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
