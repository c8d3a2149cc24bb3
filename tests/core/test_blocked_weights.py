"""Weights that are laid out for the CPU's matrix kernels: the same products, and bits that depend on nothing else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn import functional

from diffulex_core.context import BuildContext
from diffulex_core.distributed.ranges import Range
from diffulex_core.layers.blocked import DTYPES, block_weights, multiply, usable
from diffulex_core.layers.linear import Embedding, Linear, PackedLinear, VocabHead
from diffulex_core.layers.mlp import GatedMLP
from diffulex_core.layers.moe.spec import Activation

CPU = torch.device("cpu")
ABLE = [dtype for dtype in DTYPES if usable(dtype)]


def context(dtype: torch.dtype = torch.float32) -> BuildContext:
    return BuildContext(dtype=dtype, device=CPU)


def filled(layer: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for parameter in layer.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layer


def rows_of(count: int, width: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_fp32_weights_are_laid_out_on_every_cpu_that_torch_has_onednn_for() -> None:
    assert usable(torch.float32) == torch.backends.mkldnn.is_available()
    assert not usable(torch.float64)


@settings(max_examples=30, deadline=None)
@given(
    outputs=st.integers(1, 70), inputs=st.integers(1, 70), rows=st.integers(0, 40), bias=st.booleans(),
    dtype=st.sampled_from(ABLE),
)  # fmt: skip
def test_products_are_those_of_the_plain_layer(
    outputs: int, inputs: int, rows: int, bias: bool, dtype: torch.dtype
) -> None:
    layer = filled(Linear(context(dtype), inputs, outputs, bias=bias))
    x = rows_of(rows, inputs, dtype, seed=1)
    wanted = layer(x)
    exact = layer.weight.detach().clone()
    assert block_weights(layer) == 1
    assert layer.weight.shape == exact.shape
    assert torch.equal(layer.weight.to_dense(), exact)
    # Sums of up to 70 products of standard normal numbers, in another order.
    torch.testing.assert_close(layer(x), wanted, rtol=0.02 if dtype is torch.bfloat16 else 1e-5, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.sampled_from([(96, 32), (104, 48), (97, 33), (384, 256), (256, 640), (2048, 512)]),
    before=st.integers(0, 9), behind=st.integers(0, 9), dtype=st.sampled_from(ABLE),
)  # fmt: skip
def test_the_bits_of_eight_rows_do_not_depend_on_rows_beside_them(
    shape: tuple[int, int], before: int, behind: int, dtype: torch.dtype
) -> None:
    layer = filled(Linear(context(dtype), shape[1], shape[0]))
    block_weights(layer)
    own, others = rows_of(8, shape[1], dtype, seed=2), rows_of(8 * (before + behind), shape[1], dtype, seed=3)
    together = layer(torch.cat((others[: 8 * before], own, others[8 * before :])))
    assert torch.equal(together[8 * before :][:8], layer(own))


def test_a_head_that_is_the_embedding_too_is_laid_out_in_a_copy() -> None:
    network = nn.Module()
    network.embed, network.head = Embedding(context(), 24, 8), VocabHead(context(), 8, 24)
    network.head.weight = network.embed.weight
    filled(network)
    ids = torch.arange(24)
    assert block_weights(network) == 1
    hidden = network.embed(ids)
    torch.testing.assert_close(network.head(hidden), hidden @ network.embed.weight.T)


def test_parts_of_a_packed_layer_still_come_apart() -> None:
    layer = filled(PackedLinear(context(), 16, {"gate": Range(0, 24, 24), "up": Range(0, 24, 24)}))
    gate, up = layer.weight.detach().clone().split(24)
    block_weights(layer)
    x = rows_of(8, 16, torch.float32, seed=4)
    for found, weight in zip(layer.split(layer(x)), (gate, up), strict=True):
        torch.testing.assert_close(found, functional.linear(x, weight))


@settings(max_examples=30, deadline=None)
@given(
    width=st.integers(1, 70), inputs=st.integers(1, 70), rows=st.integers(0, 40), bias=st.booleans(),
    activation=st.sampled_from(["silu", "gelu_tanh"]), dtype=st.sampled_from(ABLE),
)  # fmt: skip
def test_the_gates_of_an_mlp_are_those_of_the_plain_layers(
    width: int, inputs: int, rows: int, bias: bool, activation: Activation, dtype: torch.dtype
) -> None:
    mlp = filled(GatedMLP(context(dtype), inputs, width, activation=activation, bias=bias))
    x = rows_of(rows, inputs, dtype, seed=1) / inputs**0.5
    packed = functional.linear(x.double(), mlp.gate_up.weight.double(), mlp.gate_up.bias.double() if bias else None)
    gate, up = packed.chunk(2, dim=-1)
    gate = functional.silu(gate) if activation == "silu" else functional.gelu(gate, approximate="tanh")
    plain = mlp(x)
    assert block_weights(mlp) == 2
    rounding = 0.02 if dtype is torch.bfloat16 else 1e-5
    torch.testing.assert_close(mlp.gate_up(x).double(), gate * up, rtol=rounding, atol=rounding)
    torch.testing.assert_close(mlp(x), plain, rtol=3 * rounding, atol=rounding * width)


@settings(max_examples=25, deadline=None)
@given(
    inputs=st.sampled_from([33, 48, 256]), width=st.sampled_from([40, 97, 512]),
    before=st.integers(0, 9), behind=st.integers(0, 9), activation=st.sampled_from(["silu", "gelu_tanh"]),
    dtype=st.sampled_from(ABLE),
)  # fmt: skip
def test_the_bits_of_eight_rows_of_gates_do_not_depend_on_rows_beside_them(
    inputs: int, width: int, before: int, behind: int, activation: Activation, dtype: torch.dtype
) -> None:
    mlp = filled(GatedMLP(context(dtype), inputs, width, activation=activation))
    block_weights(mlp)
    own, others = rows_of(8, inputs, dtype, seed=2), rows_of(8 * (before + behind), inputs, dtype, seed=3)
    together = mlp(torch.cat((others[: 8 * before], own, others[8 * before :])))
    assert torch.equal(together[8 * before :][:8], mlp(own))


def test_gates_that_an_adapter_works_on_are_left_alone() -> None:
    mlp = filled(GatedMLP(context(), 16, 24))
    mlp.gate_up.multiply = lambda x, weight, bias: functional.linear(x, 2 * weight, bias)
    before = mlp.gate_up
    assert block_weights(mlp) == 1, "`down`"
    assert mlp.gate_up is before


def test_a_layer_that_multiplies_in_its_own_way_is_left_alone() -> None:
    layer = filled(Linear(context(), 16, 8))
    layer.multiply = lambda x, weight, bias: functional.linear(x, 2 * weight, bias)
    before = layer.weight
    assert block_weights(layer) == 0
    assert layer.weight is before


def test_other_devices_and_dtypes_are_left_alone() -> None:
    meta = Linear(BuildContext(dtype=torch.float32, device=torch.device("meta")), 16, 8)
    assert block_weights(meta) == 0
    assert block_weights(Linear(context(torch.float64), 16, 8)) == 0


def test_without_onednn_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    layer = filled(Linear(context(), 16, 8))
    assert block_weights(layer) == 0
    assert layer.multiply is functional.linear


def test_a_layer_is_laid_out_once() -> None:
    layer = filled(Linear(context(), 16, 8))
    assert (block_weights(layer), block_weights(layer)) == (1, 0)
    assert layer.multiply is multiply
