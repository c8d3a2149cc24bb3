"""The Triton kernels of the experts beside the definition, in Triton's interpreter or on a GPU."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch

from diffulex_core.host import Host
from diffulex_core.kernels.case import KernelCase
from diffulex_core.kernels.moe import select_experts_kernel
from diffulex_core.kernels.moe.arrange import arrange, arrange_on_device
from diffulex_core.kernels.moe.fused import TritonExperts
from diffulex_core.kernels.moe.naive import NaiveExperts
from diffulex_core.layers.moe import Activation
from diffulex_core.sampling_params import SamplingParams
from tests.integration.engines import engine, vectors

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LARGE = pytest.param(600, 2, 64, marks=pytest.mark.slow)
# rows, slots, experts, hidden, size: none; one of everything; more than a tile each way, odd; tiles of 64 rows.
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
    tensors = [each.to(DEVICE) for each in (x, ids, weights, w13, w2)]
    found, exact = TritonExperts()(*tensors, activation).cpu(), NaiveExperts()(*tensors, activation).cpu()
    assert found.dtype == dtype
    if rows == 0:
        return float(found.shape != exact.shape)
    return float((found.float() - exact.float()).abs().max() / exact.float().abs().max().clamp(min=1e-6))


@pytest.mark.parametrize(
    ("dtype", "bound"),
    [
        (torch.float32, 1e-5),
        pytest.param(torch.bfloat16, 0.02, marks=pytest.mark.slow),
        pytest.param(torch.float16, 0.003, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_every_row_is_the_weighted_sum_over_its_experts(dtype: torch.dtype, bound: float) -> None:
    """Relative to the largest output of the fp32 definition: what lies between the products is rounded to the dtype."""
    for shape, activation in product(SHAPES, ("silu", "gelu_tanh")):
        assert error(shape, dtype, activation) < bound, (shape, activation)


@pytest.mark.parametrize("tile", [1, 16, 64])
@pytest.mark.parametrize(("rows", "slots", "experts"), [(0, 2, 3), (1, 1, 1), (5, 3, 7), (300, 4, 5), LARGE])
def test_slots_are_sorted_as_the_twin_sorts_them(rows: int, slots: int, experts: int, tile: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    ids = torch.randint(-1, experts, (rows, slots), generator=generator).int()
    weights = torch.rand(rows, slots, generator=generator).masked_fill(ids % 4 == 1, 0.0)
    ours, theirs = (each(ids.to(DEVICE), weights.to(DEVICE), experts, tile) for each in (arrange_on_device, arrange))
    assert torch.equal(ours.expert_of_tile, theirs.expert_of_tile)
    assert torch.equal(ours.slot_of_row, theirs.slot_of_row)


def test_the_interpreter_is_used_where_it_is_named_and_not_otherwise() -> None:
    host, case = Host.discover([], {}), KernelCase(device_type=DEVICE, dtype=torch.float32)
    assert isinstance(select_experts_kernel("triton", host, case), TritonExperts)
    assert isinstance(select_experts_kernel("auto", host, case), TritonExperts) is (DEVICE == "cuda")


@pytest.mark.slow
def test_an_engine_decodes_its_recorded_tokens_with_triton() -> None:
    recording = vectors("llada2-b1")
    case: dict[str, Any] = recording["cases"][0]
    with engine("llada2", **recording["config"], moe_gemm_impl="triton", skip_warmup=True) as ready:
        [answer] = ready.generate([case["prompt"]], SamplingParams(**recording["sampling"], max_tokens=4))
    assert list(answer.token_ids) == case["tokens"][:4]
