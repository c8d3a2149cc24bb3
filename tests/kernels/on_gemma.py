"""DiffusionGemma through the layers' kernels and paged attention beside its own torch code, in Triton's interpreter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffulex_core.attention.triton.backend import PagedTriton
from diffulex_core.kernels.layers import LayerKernels
from diffulex_core.kernels.layers.fused import TritonLayers
from tests.families.gemma import CANVAS, Bench, Fed, load, native_model, save

TABLE = [7, 2, 9, 0]
LENGTH = 9


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers: a sliding one with values of its own, and a full one whose values are its keys."""
    path: Path = tmp_path_factory.mktemp("gemma")
    save(native_model(num_hidden_layers=2, layer_types=["sliding_attention", "full_attention"]), path)
    return path


def passes(folder: Path, kernels: LayerKernels | None) -> list[Tensor]:
    """Hidden rows of a prompt with a canvas, and of the canvas once more, self-conditioned; what they stored."""
    torch.manual_seed(0)
    bench = Bench(load(folder, kernels=kernels), backend=PagedTriton() if kernels is not None else None)
    tokens = list(range(3, 3 + LENGTH + CANVAS))
    first = Fed(tokens=tokens, final_end=LENGTH, table=TABLE)
    believed = bench.soft(torch.randn(CANVAS, 97))
    again = Fed(tokens=tokens[LENGTH:], start=LENGTH, final_end=LENGTH, table=TABLE, soft=believed)
    found = [*bench.run(first), *bench.run(again)]
    for layer in (0, 1):
        found += bench.stored(layer, TABLE, LENGTH + CANVAS)
    return found


@pytest.mark.slow
def test_a_canvas_behind_its_prompt_is_that_of_the_torch_code(folder: Path) -> None:
    for ours, theirs in zip(passes(folder, TritonLayers()), passes(folder, None), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=2e-4)
