"""DiffusionGemma through kernels of the layers: the same numbers, and all of its norms, heads, gates and routes."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.families.gemma import CANVAS, Bench, Fed, load, native_model, save
from tests.integration.twin_kernels import TwinKernels

TABLE = [7, 2, 9, 0]


def test_a_canvas_with_kernels_is_that_without(tmp_path: Path) -> None:
    save(native_model(), tmp_path)
    tokens = list(range(3, 12 + CANVAS))
    TwinKernels.calls.clear()
    hidden, stored = [], []
    for kernels in (TwinKernels(), None):
        bench = Bench(load(tmp_path, kernels=kernels))
        believed = bench.soft(torch.linspace(-2, 2, 97).repeat(CANVAS, 1))
        prompt = Fed(tokens=tokens, final_end=9, table=TABLE)
        canvas = Fed(tokens=tokens[9:], start=9, final_end=9, table=TABLE, soft=believed)
        hidden.append(torch.cat([*bench.run(prompt), *bench.run(canvas)]))
        stored.append(torch.cat([part.flatten() for layer in range(6) for part in bench.stored(layer, TABLE, 13)]))
    torch.testing.assert_close(hidden[0], hidden[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(stored[0], stored[1], atol=1e-5, rtol=1e-5)
    layers, passes = 6, 2
    assert TwinKernels.calls == {
        "turn_and_store": layers * passes,
        "norm_and_add": 3 * layers * passes,
        "normed": (5 * layers + 3) * passes - 1,  # without what a first step believed there is one fewer
        "gated": (layers + 1) * passes - 1,
        "route": layers * passes,
    }
