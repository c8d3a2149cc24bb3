"""The layer on the plugins' page runs, and says the same with kernels as without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffulex_core.context import BuildContext, ForwardContext
from diffulex_core.kernels.layers import LayerKernels
from diffulex_core.kernels.layers.twins import TorchLayers
from diffulex_core.layers.rope import Rope
from diffulex_core.layers.spec import DecoderSpec
from tests.test_docs import code_blocks

PAGE = Path(__file__).parents[2] / "docs/plugins.md"
SPEC = DecoderSpec(
    vocab_size=50, hidden_size=24, num_layers=2, num_heads=4, num_kv_heads=2, ffn_size=20, rope_theta=1e4, head_dim=6
)


class Kept:
    """Attention that shows its queries."""

    def attend(self, query: Tensor, *_: Any) -> Tensor:
        return query.clone()


def two_layers(kernels: LayerKernels | None) -> Tensor:
    page = next(block for block in code_blocks(PAGE.read_text(), "python") if "class ParallelLayer" in block)
    names: dict[str, Any] = {"__name__": "page"}
    exec(page, names)
    ctx = BuildContext(dtype=torch.float32, device=torch.device("cpu"), kernels=kernels)
    generator = torch.Generator().manual_seed(0)
    pages = tuple(torch.zeros(1, 4, 2, 6) for _ in range(2))
    forward = ForwardContext(
        slots=torch.arange(3),
        key_pages=pages,
        value_pages=pages,
        batches=(None,),
        backend=Kept(),  # type: ignore[arg-type]
    )
    x, addend = torch.randn(3, 24, generator=generator), None
    for index in range(2):
        layer = names["ParallelLayer"](ctx, SPEC, index)
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        x, addend = layer(x, addend, Rope(theta=1e4, rotary_dim=6).rotation(torch.arange(3)), forward)
    assert addend is not None
    return x + addend


def test_a_layer_of_ones_own_runs_on_kernels_because_its_parts_do() -> None:
    with torch.no_grad():
        plain, fused = two_layers(None), two_layers(TorchLayers())
    torch.testing.assert_close(fused, plain, atol=1e-5, rtol=1e-5)
    assert bool((plain.abs() > 1e-3).any())
