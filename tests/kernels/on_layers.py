"""The layers' kernels beside the layers' own torch code, in Triton's interpreter or on a GPU."""

from __future__ import annotations

import attrs
import pytest
import torch
from torch import Tensor

from diffulex_core.context import BuildContext, ForwardContext
from diffulex_core.kernels.case import KernelCase
from diffulex_core.kernels.layers.fused import TritonLayers
from diffulex_core.layers import DecoderSpec
from diffulex_core.layers.attention import SelfAttention
from diffulex_core.layers.decoder import Decoder
from diffulex_core.layers.mlp import GatedMLP
from diffulex_core.layers.moe import MoESpec
from diffulex_core.layers.moe.routing import choose
from diffulex_core.layers.norm import RMSNorm
from diffulex_core.layers.rope import Rope
from diffulex_core.types import AttentionBatch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
ALLOWED = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
SPEC = DecoderSpec(
    vocab_size=50, hidden_size=24, num_layers=2, num_heads=4, num_kv_heads=2, ffn_size=20, rope_theta=1e4, head_dim=10
)


def context(dtype: torch.dtype, *, fused: bool) -> BuildContext:
    return BuildContext(dtype=dtype, device=DEVICE, kernels=TritonLayers() if fused else None)


def numbers(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


def fill(module: torch.nn.Module) -> None:
    for index, parameter in enumerate(module.parameters()):
        parameter.data.copy_(numbers(*parameter.shape, seed=index) * 0.3 + (parameter.dim() == 1))


def close(ours: Tensor, theirs: Tensor) -> None:
    """To a few roundings, where the torch code multiplies and adds in another order."""
    assert ours.dtype == theirs.dtype
    allowed = ALLOWED[ours.dtype]
    torch.testing.assert_close(ours.float(), theirs.float(), atol=allowed * 2, rtol=allowed * 2)


@DTYPES
@pytest.mark.parametrize("width", [24, 100])
def test_a_norm_is_that_of_the_layer_with_and_without_an_addend(dtype: torch.dtype, width: int) -> None:
    ours, theirs = (RMSNorm(context(dtype, fused=fused), width, 1e-5) for fused in (True, False))
    fill(ours), fill(theirs)
    x, addend = numbers(5, width, dtype=dtype), numbers(5, 2 * width, dtype=dtype, seed=1)[:, :width]
    close(ours(x), theirs(x))
    (total, normed), (expected, expected_normed) = ours.after(x, addend), theirs.after(x, addend)
    close(total, expected)  # the interpreter cuts bfloat16 off instead of rounding it
    close(normed, expected_normed)


@DTYPES
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_a_gate_is_that_of_the_layer(dtype: torch.dtype, activation: str) -> None:
    mlp = GatedMLP(context(dtype, fused=False), 24, 20, activation=activation)  # type: ignore[arg-type]
    packed = numbers(5, 40, dtype=dtype) * 3
    gate, up = packed.clone().chunk(2, dim=1)
    close(TritonLayers().gated(packed, mlp.gate), mlp.activation(gate) * up)


class Kept:
    """An attention backend that shows what it was given."""

    def attend(self, query: Tensor, key_pages: Tensor, value_pages: Tensor, batch: AttentionBatch, _: float) -> Tensor:
        return query.clone()


@DTYPES
@pytest.mark.parametrize("changed", [{}, {"qk_norm": True}, {"rope_fraction": 0.4}], ids=str)
def test_heads_are_normalised_turned_and_stored_as_the_layer_does(
    dtype: torch.dtype, changed: dict[str, float]
) -> None:
    spec = attrs.evolve(SPEC, **changed)  # type: ignore[arg-type]
    x, rotation = numbers(5, 24, dtype=dtype), Rope(theta=1e4, rotary_dim=spec.rotary_dim).rotation(torch.arange(5) * 7)
    slots = torch.tensor([9, -1, 0, 3, -1])
    found = []
    for fused in (True, False):
        attention = SelfAttention(context(dtype, fused=fused), spec, 0)
        fill(attention)
        pages = tuple(torch.full((3, 4, 2, 10), torch.nan, dtype=dtype, device=DEVICE) for _ in range(2))
        ctx = ForwardContext(
            slots=slots.to(DEVICE),
            key_pages=pages[:1],
            value_pages=pages[1:],
            batches=(None,),
            backend=Kept(),  # type: ignore[arg-type]
        )
        turned = attrs.evolve(rotation, cos=rotation.cos.to(DEVICE), sin=rotation.sin.to(DEVICE))
        found.append((attention(x, turned, ctx), *pages))
    (out, keys, values), (expected, expected_keys, expected_values) = found
    close(out, expected)
    written = ~expected_keys.isnan()
    assert torch.equal(written, ~keys.isnan())
    assert sorted(written.flatten(0, 1).any(-1).any(-1).nonzero().flatten().tolist()) == [0, 3, 9]
    close(keys[written], expected_keys[written])
    assert torch.equal(values[written], expected_values[written])


ROUTERS = [
    MoESpec(num_experts=7, experts_per_token=3, expert_size=4, router="softmax", renormalize=True),
    MoESpec(num_experts=8, experts_per_token=1, expert_size=4, router="softmax", renormalize=False, scale=2.5),
    MoESpec(num_experts=8, experts_per_token=1, expert_size=4, router="sigmoid", renormalize=True),
    MoESpec(
        num_experts=12, experts_per_token=4, expert_size=4, router="sigmoid", renormalize=True, num_groups=4,
        groups_kept=2, correction_bias=True, scale=2.5,
    ),
]  # fmt: skip


@pytest.mark.parametrize("spec", ROUTERS, ids=lambda spec: f"{spec.router}-{spec.num_experts}")
def test_experts_are_chosen_as_the_router_does_ties_included(spec: MoESpec) -> None:
    logits = (numbers(9, spec.num_experts) * 2).round()
    bias = (numbers(spec.num_experts, seed=3) * 4).round() / 8 if spec.correction_bias else None
    ids, weights = TritonLayers().route(logits, bias, spec)
    expected, expected_weights = choose(logits, bias, spec)
    assert ids.dtype == torch.int32
    assert torch.equal(ids, expected)
    torch.testing.assert_close(weights, expected_weights, atol=1e-6, rtol=1e-6)


@DTYPES
def test_embeddings_are_merged_as_the_network_does(dtype: torch.dtype) -> None:
    ours, theirs = (Decoder(SPEC, context(dtype, fused=fused)) for fused in (True, False))
    fill(ours), fill(theirs)
    ids = torch.tensor([[3, 49, 7], [0, 0, 0], [5, 6, 1]], device=DEVICE)
    weights = torch.tensor([[0.7, 0.2, 0.1], [0.0, 0.0, 0.0], [1.0, 3.0, -1.0]], device=DEVICE)
    for match in (True, False):
        match_norm = torch.tensor([match, True, False], device=DEVICE)
        close(ours.blend(ids, weights, match_norm), theirs.blend(ids, weights, match_norm))


def test_nothing_comes_of_no_rows() -> None:
    kernels, empty = TritonLayers(), numbers(0, 24)
    assert kernels.normed(empty, numbers(24), 1e-5).shape == (0, 24)
    assert kernels.gated(empty, "silu").shape == (0, 12)
    assert kernels.route(empty, None, attrs.evolve(ROUTERS[0], num_experts=24))[0].shape == (0, 3)
    assert kernels.blend(numbers(5, 24), empty.long(), empty, empty[:, 0] > 0).shape == (0, 24)


def test_where_they_serve_and_why_not_elsewhere() -> None:
    case = KernelCase(device_type=DEVICE.type, dtype=torch.bfloat16)
    assert TritonLayers().reasons(case) == []
    assert TritonLayers().reasons(attrs.evolve(case, dtype=torch.float64)) == [
        "it computes in float16, bfloat16 or float32, not in torch.float64"
    ]
    assert "it runs on CUDA devices, not on 'mps'" in TritonLayers().reasons(attrs.evolve(case, device_type="mps"))[0]
