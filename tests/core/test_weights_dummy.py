"""Random weights: a usable model without files, the same one for every number of processes."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import nn

from diffulex_core.context import BuildContext
from diffulex_core.distributed import Seat
from diffulex_core.layers import DecoderSpec
from diffulex_core.layers.decoder import Decoder
from diffulex_core.layers.linear import Linear
from diffulex_core.weights import dummy_weights
from tests.core.forward import Rows, block_causal, pages, run_model
from tests.core.test_weights_divided import Net as Divided

CPU = torch.device("cpu")
META = torch.device("meta")
SPEC = DecoderSpec(
    vocab_size=101, hidden_size=32, num_layers=3, num_heads=4, num_kv_heads=2, ffn_size=48, rope_theta=1e4,
    qk_norm=True, qkv_bias=True,
)  # fmt: skip


def decoder(dtype: torch.dtype = torch.float32, seed: int = 0, *, tied: bool = False) -> Decoder:
    spec = SPEC if not tied else DecoderSpec(vocab_size=101, hidden_size=32, num_layers=1, num_heads=4, num_kv_heads=2,
        ffn_size=48, rope_theta=1e4, tie_embeddings=True)  # fmt: skip
    model = Decoder(spec, BuildContext(dtype=dtype, device=META))
    dummy_weights(model, device=CPU, seed=seed)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_parameter_is_written_in_its_own_dtype_and_the_logits_spread_a_little(dtype: torch.dtype) -> None:
    model = decoder(dtype)
    for parameter in model.parameters():
        assert parameter.dtype == dtype
        assert parameter.isfinite().all()
        assert parameter.unique().numel() > parameter.numel() // 4
    rows = Rows(tokens=list(range(9)), key_end=block_causal(9, 4), table=[0, 1, 2])
    (logits,) = run_model(model, [rows], pages(model.kv_geometry, 3, 4))
    assert 0.3 < logits.float().std() < 3
    assert not model.training


def test_norms_are_near_one_biases_near_zero_and_matrices_keep_the_scale_of_what_passes_through() -> None:
    state = decoder().state_dict()
    assert (state["layers.0.attn_norm.weight"] - 1).abs().max() <= 0.1
    assert (state["layers.0.attn.q_norm.weight"] - 1).abs().max() <= 0.1
    assert state["layers.0.attn.qkv.bias"].abs().max() <= 0.1
    deviation = state["layers.1.mlp.down.weight"].std() * SPEC.ffn_size**0.5
    assert 0.9 < deviation < 1.1


def test_a_seed_gives_one_model_and_no_two_layers_are_alike() -> None:
    first, again, other = (decoder(seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)
    assert not torch.equal(first["layers.0.mlp.down.weight"], first["layers.1.mlp.down.weight"])


def test_a_tied_head_stays_tied() -> None:
    model = decoder(tied=True)
    assert model.lm_head.weight is model.embed.weight


@pytest.mark.parametrize("size", [2, 4, 8])
def test_the_processes_of_a_group_hold_shares_of_one_model(size: int) -> None:
    def parts(rank: int, size: int) -> Mapping[str, torch.Tensor]:
        net = Divided(Seat(rank, size))
        dummy_weights(net, device=CPU)
        return {
            "q": net.qkv.parts("weight")["q"].view, "v": net.qkv.parts("bias")["v"].view, "embed": net.embed.weight,
            "out": net.out.weight.T, "whole": net.out.get_parameter("bias"),
        }  # fmt: skip

    alone, shares = parts(0, 1), [parts(rank, size) for rank in range(size)]
    for name in ("q", "embed", "out"):
        assert torch.equal(torch.cat([share[name] for share in shares])[: len(alone[name])], alone[name])
    copies = max(1, size // 2)
    assert torch.equal(torch.cat([share["v"] for share in shares[::copies]]), alone["v"])
    assert all(torch.equal(share["whole"], alone["whole"]) for share in shares)


def test_whole_numbers_are_zero_and_scalars_are_near_one() -> None:
    class Odd(nn.Module):
        steps: torch.Tensor
        scale: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.linear = Linear(BuildContext(dtype=torch.float32, device=META), 3, 4)
            self.register_buffer("steps", torch.empty(2, dtype=torch.int64, device=META))
            self.register_buffer("scale", torch.empty((), device=META))

    odd = Odd()
    report = dummy_weights(odd, device=CPU)
    assert odd.steps.tolist() == [0, 0]
    assert 0.9 <= odd.scale.item() <= 1.1
    assert (report.tensors, report.files, report.bytes) == (3, (), 4 * 12 + 8 * 2 + 4)
