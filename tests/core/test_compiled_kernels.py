"""Every kernel compiles for the GPUs that people have, at the sizes of published models, and fits into them.

Triton's interpreter takes what its compiler refuses: other numbers of warps than powers of two, say, and any amount of
shared memory. No GPU takes part, so these tests say nothing about what a kernel computes; `tests/kernels` does.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from diffulex_core.attention.triton.backend import PagedTriton
from diffulex_core.kernels.case import KernelCase
from diffulex_core.kernels.layers import head
from diffulex_core.kernels.layers.fused import TritonLayers
from diffulex_core.kernels.listing import KERNELS, Operation, Source
from diffulex_core.kernels.moe.fused import TritonExperts
from diffulex_core.kernels.on_triton import Processors
from diffulex_core.sampling.facts import Wanted
from diffulex_core.types import AttentionBatch
from tests.kernels.compiler import Compiled, compiling

MOST_SHARED = {80: 166_912, 86: 101_376, 90: 232_448, 120: 101_376}
"""Bytes of shared memory of a program, by compute capability: CUDA's programming guide, technical specifications."""
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
DEVICES = pytest.mark.parametrize(
    "capability", [pytest.param(each, marks=() if each == 90 else pytest.mark.slow) for each in MOST_SHARED]
)


def fits(launched: Sequence[Compiled], capability: int, *names: str) -> None:
    assert {each.name for each in launched} == {*names}
    for each in launched:
        assert each.shared_bytes <= MOST_SHARED[capability], each


@DEVICES
@pytest.mark.parametrize("dtype", [BF16, pytest.param(FP16, marks=pytest.mark.slow), FP32], ids=str)
@pytest.mark.parametrize("operation", KERNELS, ids=lambda operation: f"{operation.kernel.__name__}.{operation.name}")
def test_every_kernel_compiles_at_sizes_that_tell(operation: Operation, dtype: torch.dtype, capability: int) -> None:
    source = Source.seeded(KernelCase(device_type="cpu", dtype=dtype), seed=0, strided=True)
    with compiling(capability) as launched:
        for sizes in operation.sizes:
            operation.run(operation.kernel(), operation.draw({"rows": 5, **sizes}, source))
    assert launched
    fits(launched, capability, *{each.name for each in launched})


@DEVICES
@pytest.mark.parametrize("hidden", [1536, 2048, 2560, 2816, 3584, 4096])
def test_rows_as_wide_as_published_models_have_them(hidden: int, capability: int) -> None:
    """Those of Fast-dLLM v2 1.5B, LLaDA2-mini, SDAR-4B, DiffusionGemma, Dream and LLaDA."""
    x, weight = torch.empty(3, hidden, dtype=BF16), torch.empty(hidden, dtype=BF16)
    ids, shares = torch.zeros(3, 2, dtype=torch.int64), torch.ones(3, 2)
    with compiling(capability) as launched:
        TritonLayers().normed(x, weight, 1e-6)
        TritonLayers().add_and_norm(x, x, weight, 1e-6)
        TritonLayers().norm_and_add(x, x, weight, 1e-6, wide=True)
        TritonLayers().blend(torch.empty(9, hidden, dtype=BF16), ids, shares, torch.ones(3, dtype=torch.bool))
    fits(launched, capability, "norm_row", "norm_and_add_row", "blend_row")


@DEVICES
@pytest.mark.parametrize("rows", [1, 512])
@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
def test_the_head_of_a_published_model(dtype: torch.dtype, rows: int, capability: int) -> None:
    hidden, weight = torch.empty(rows, 4096, dtype=dtype), torch.empty(head.SPAN, 4096, dtype=dtype)
    with compiling(capability) as launched:
        head.select(hidden, weight, None, Wanted(columns=head.SPAN, entropy=True, second=True))
    fits(launched, capability, "summed_up", "put_together")


@DEVICES
@pytest.mark.parametrize("rows", [4, 600])
@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
def test_the_experts_of_a_published_model(dtype: torch.dtype, rows: int, capability: int) -> None:
    """Two of LLaDA2-mini's, with few rows for each, and with many."""
    ids, weights = torch.zeros(rows, 2, dtype=torch.int32), torch.ones(rows, 2)
    w13, w2 = torch.empty(2, 1024, 2048, dtype=dtype), torch.empty(2, 2048, 512, dtype=dtype)
    with compiling(capability) as launched:
        TritonExperts()(torch.empty(rows, 2048, dtype=dtype), ids, weights, w13, w2, "silu")
    fits(launched, capability, "count_slots", "place_slots", "gated_product", "down_product", "sum_slots")


ATTENTION = [
    (head_dim, rows, dtype) for dtype in (BF16, FP32) for head_dim in (64, 80, 128, 256, 512) for rows in (32, 2048)
]
FAST = [(90, 128, 32, BF16), (86, 256, 2048, BF16), (86, 128, 32, FP32)]


def attention(capability: int, head_dim: int, rows: int, dtype: torch.dtype) -> list[Compiled]:
    """What one call of `triton` attention launches, two query heads to a KV head, over room for 8,192 keys."""
    pages, whose = torch.empty(256, 32, 2, head_dim, dtype=dtype), torch.zeros(rows, dtype=torch.int64)
    batch = AttentionBatch(
        key_start=whose, key_end=whose, row_sequence=whose, page_tables=torch.zeros(1, 256, dtype=torch.int64),
        page_size=32, runs=(),
    )  # fmt: skip
    backend = PagedTriton(lambda _: Processors(count=108, shared_bytes=MOST_SHARED[capability]))
    with compiling(capability) as launched:
        backend.attend(torch.empty(rows, 4, head_dim, dtype=dtype), pages, pages, batch, 0.1)
    return launched


@pytest.mark.parametrize(
    ("capability", "head_dim", "rows", "dtype"),
    [
        pytest.param(capability, *case, marks=() if (capability, *case) in FAST else pytest.mark.slow)
        for capability in MOST_SHARED
        for case in ATTENTION
        if case[2] is BF16 or capability in (86, 90)
    ],
    ids=str,
)
def test_attention_fits_into_the_shared_memory_of_each_device(
    capability: int, head_dim: int, rows: int, dtype: torch.dtype
) -> None:
    """Keys of few rows are divided, and joined; those of many may be."""
    launched = attention(capability, head_dim, rows, dtype)
    divided = rows == 32 or any(each.name == "join_parts" for each in launched)
    fits(launched, capability, "attend_tiles", *({"join_parts"} if divided else ()))
