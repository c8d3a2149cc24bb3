"""The generic decoder and its parts, each against an independent statement of the same formula."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from diffulex_core.attention.reference import TorchReference
from diffulex_core.context import BuildContext, SoftInputs
from diffulex_core.distributed.ranges import whole
from diffulex_core.errors import ConfigError
from diffulex_core.layers import DecoderSpec, build_decoder
from diffulex_core.layers.activations import silu
from diffulex_core.layers.linear import PackedLinear
from diffulex_core.layers.norm import RMSNorm
from diffulex_core.layers.rope import Rope
from tests.core.forward import CPU, Rows, all_visible, block_causal, pages, run_model

FP32 = BuildContext(dtype=torch.float32, device=CPU)
SPEC = DecoderSpec(
    vocab_size=61, hidden_size=40, num_layers=2, num_heads=4, num_kv_heads=2, ffn_size=37, rope_theta=1e4, head_dim=6
)


def fill(module: nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for tensor in module.parameters():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3 + (0.7 if tensor.dim() == 1 else 0.0))


def named_parts(module: PackedLinear, parameter: str) -> dict[object, Tensor]:
    return {name: part.view for name, part in module.parts(parameter).items() if name is not None}


def decoder(spec: DecoderSpec = SPEC, seed: int = 0) -> nn.Module:
    model = build_decoder(spec, FP32)
    assert isinstance(model, nn.Module)
    fill(model, seed)
    return model


@given(
    position=st.integers(0, 5000),
    theta=st.sampled_from([100.0, 1e4, 5e5]),
    half=st.integers(1, 5),
    passed=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_rope_turns_pair_j_and_j_plus_half_by_position_times_frequency(
    position: int, theta: float, half: int, passed: int, seed: int
) -> None:
    head = np.random.default_rng(seed).standard_normal(2 * half + passed)
    pairs = head[:half] + 1j * head[half : 2 * half]
    turned = pairs * np.exp(1j * position * theta ** (-np.arange(half) / half))
    expected = np.concatenate((turned.real, turned.imag, head[2 * half :]))

    rotation = Rope(theta=theta, rotary_dim=2 * half).rotation(torch.tensor([position]))
    got = rotation(torch.tensor(head, dtype=torch.float32)[None, None])

    np.testing.assert_allclose(got[0, 0].double(), expected, atol=2e-3 if position > 100 else 1e-5)


def test_pairs_that_do_not_turn_pass_through_and_the_others_keep_their_frequencies() -> None:
    """8 of 16 dimensions: pairs 0 to 3 turn as they would in a head that turns whole, 4 to 7 do not."""
    head = torch.randn(3, 2, 20, generator=torch.Generator().manual_seed(2))
    positions = torch.tensor([0, 5, 900])
    whole, some = (Rope(theta=1e4, rotary_dim=16, turning=pairs).rotation(positions)(head) for pairs in (None, 4))
    for first in (0, 8):
        assert torch.equal(some[..., first : first + 4], whole[..., first : first + 4])
        assert torch.equal(some[..., first + 4 : first + 8], head[..., first + 4 : first + 8])
    assert torch.equal(some[..., 16:], head[..., 16:])


def test_soft_inputs_replace_their_rows_and_no_others() -> None:
    soft = SoftInputs(rows=torch.tensor([3, 0]), embeddings=torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    base = torch.full((5, 2), 9.0)
    assert soft.over(base).tolist() == [[3, 4], [9, 9], [9, 9], [1, 2], [9, 9]]
    assert base.tolist() == [[9, 9]] * 5


@given(rows=st.integers(1, 40), row=st.integers(0, 39), half=st.integers(1, 9))
def test_the_bits_of_a_rotation_do_not_depend_on_the_rows_beside_it(rows: int, row: int, half: int) -> None:
    row = min(row, rows - 1)
    rope = Rope(theta=1e4, rotary_dim=2 * half)
    together, alone = rope.rotation(torch.arange(rows) + 7), rope.rotation(torch.tensor([row + 7]))
    assert torch.equal(together.cos[row], alone.cos[0])
    assert torch.equal(together.sin[row], alone.sin[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_casts_before_it_scales_like_llama(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    weight, x = torch.randn(32, generator=generator).to(dtype), torch.randn(50, 32, generator=generator).to(dtype)
    norm, oracle = RMSNorm(BuildContext(dtype=dtype, device=CPU), 32, 1e-5), LlamaRMSNorm(32, eps=1e-5).to(dtype)
    norm.weight.copy_(weight)
    with torch.no_grad():
        oracle.weight.copy_(weight)
        assert torch.equal(norm(x), oracle(x))


@given(size=st.integers(1, 200), index=st.integers(0, 199), seed=st.integers(0, 9))
def test_the_bits_of_silu_do_not_depend_on_the_place_in_the_tensor(size: int, index: int, seed: int) -> None:
    x = torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 4
    index = min(index, size - 1)
    assert torch.equal(silu(x)[index], silu(x[index]))


def test_silu_is_x_times_sigmoid_and_finite_at_the_extremes() -> None:
    x = torch.tensor([-1e30, -200.0, -3.0, 0.0, 0.5, 40.0, 1e30])
    expected = [value / (1 + math.exp(-value)) if value > -100 else 0.0 for value in x.tolist()]
    torch.testing.assert_close(silu(x), torch.tensor(expected))
    torch.testing.assert_close(silu(x[1:-1].bfloat16()), nn.functional.silu(x[1:-1].bfloat16()))


def test_a_packed_linear_is_its_parts_side_by_side() -> None:
    packed = PackedLinear(FP32, 5, {"a": whole(3), "b": whole(1), "c": whole(4)}, bias=True)
    fill(packed)
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(3))
    weights, biases = named_parts(packed, "weight"), named_parts(packed, "bias")
    assert list(weights) == ["a", "b", "c"]
    for name, part in zip(weights, packed.split(packed(x)), strict=True):
        torch.testing.assert_close(part, x @ weights[name].T + biases[name])


@pytest.mark.parametrize("backend", [None, TorchReference()], ids=["torch_cpu", "torch_ref"])
@pytest.mark.parametrize("mates", [0, 1, 2, 4, 9, 30])
def test_the_bits_of_a_sequence_do_not_depend_on_its_batch_mates(mates: int, backend: TorchReference | None) -> None:
    model = decoder()
    lengths = [11, 5, 1, 8, 13]
    ids = torch.randint(0, 61, (40, 13), generator=torch.Generator().manual_seed(5)).tolist()

    def rows(index: int, first_page: int) -> Rows:
        length = lengths[index % 5]
        return Rows(
            tokens=ids[index][:length],
            key_end=block_causal(length, 4),
            table=range(first_page, first_page + 4),
        )

    def logits_of_the_first(order: list[int]) -> Tensor:
        sequences = [rows(index, 4 * place) for place, index in enumerate(order)]
        store = pages(model.kv_geometry, 4 * len(order), 4)
        return run_model(model, sequences, store, backend=backend)[order.index(0)]

    others = list(range(1, mates + 1))
    alone = logits_of_the_first([0])
    assert torch.equal(logits_of_the_first([0, *others]), alone)
    assert torch.equal(logits_of_the_first([*others, 0]), alone)


def test_a_block_has_the_same_bits_in_all_padded_batch_sizes() -> None:
    model = decoder()
    ids = torch.randint(0, 61, (8,), generator=torch.Generator().manual_seed(6)).tolist()
    seen = []
    for total in range(8, 137, 8):
        sequences = [Rows(tokens=ids, key_end=all_visible(8), table=[place]) for place in range(total // 8)]
        seen += run_model(model, sequences, pages(model.kv_geometry, total // 8, 8))
    assert all(torch.equal(logits, seen[0]) for logits in seen)


def test_with_qk_norm_and_its_own_head_dim_it_equals_qwen3() -> None:
    spec = DecoderSpec(
        vocab_size=61, hidden_size=40, num_layers=2, num_heads=4, num_kv_heads=2, ffn_size=37, rope_theta=1e6,
        head_dim=16, norm_eps=1e-6, qk_norm=True, tie_embeddings=True,
    )  # fmt: skip
    model = decoder(spec)
    oracle = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=61, hidden_size=40, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=16, rms_norm_eps=1e-6, tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        )
    ).eval()  # fmt: skip
    names = {"embed.weight": "model.embed_tokens.weight", "final_norm.weight": "model.norm.weight"}
    tensors = {names[name]: tensor for name, tensor in model.state_dict().items() if name in names}
    for index, layer in enumerate(model.get_submodule("layers").children()):
        prefix = f"model.layers.{index}"
        qkv, gate_up = layer.get_submodule("attn.qkv"), layer.get_submodule("mlp.gate_up")
        assert isinstance(qkv, PackedLinear)
        assert isinstance(gate_up, PackedLinear)
        tensors |= {f"{prefix}.self_attn.{name}_proj.weight": part for name, part in named_parts(qkv, "weight").items()}
        tensors |= {f"{prefix}.mlp.{name}_proj.weight": part for name, part in named_parts(gate_up, "weight").items()}
        own = {
            "attn.out": "self_attn.o_proj", "mlp.down": "mlp.down_proj", "attn_norm": "input_layernorm",
            "ff_norm": "post_attention_layernorm", "attn.q_norm": "self_attn.q_norm", "attn.k_norm": "self_attn.k_norm",
        }  # fmt: skip
        tensors |= {f"{prefix}.{theirs}.weight": layer.get_parameter(f"{ours}.weight") for ours, theirs in own.items()}
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    oracle.load_state_dict(tensors)

    ids = torch.randint(0, 61, (13,), generator=torch.Generator().manual_seed(8))
    store = pages(model.kv_geometry, 4, 4)
    got = run_model(model, [Rows(tokens=ids.tolist(), key_end=all_visible(13), table=[3, 1, 0, 2])], store)[0]
    with torch.no_grad():
        expected = oracle(input_ids=ids[None], attention_mask=torch.zeros(1, 1, 13, 13), use_cache=False).logits[0]
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_a_tied_head_is_the_embedding_itself() -> None:
    model = decoder(DecoderSpec(
        vocab_size=9, hidden_size=8, num_layers=1, num_heads=2, num_kv_heads=2, ffn_size=8, rope_theta=1e4,
        tie_embeddings=True,
    ))  # fmt: skip
    assert model.get_parameter("lm_head.weight") is model.get_parameter("embed.weight")


def test_parameters_take_dtype_and_device_of_the_build_context_and_need_no_gradient() -> None:
    model = build_decoder(SPEC, BuildContext(dtype=torch.bfloat16, device=torch.device("meta")))
    assert isinstance(model, nn.Module)
    assert {(tensor.dtype, tensor.is_meta, tensor.requires_grad) for tensor in model.parameters()} == {
        (torch.bfloat16, True, False)
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_heads": 4, "num_kv_heads": 3}, "cannot share"),
        ({"head_dim": 5}, "even number"),
        ({"rope_fraction": 0.5, "head_dim": 6}, "even number"),
        ({"ffn_size": 0}, "ffn_size is 0"),
        ({"num_heads": 0}, "num_heads is 0"),
        ({"norm_eps": 0.0}, "must be positive"),
        ({"activation": "relu"}, "only 'rms' with 'silu'"),
    ],
)
def test_a_spec_that_makes_no_decoder_is_refused(changes: dict[str, object], words: str) -> None:
    numbers: dict[str, object] = {
        "vocab_size": 9, "hidden_size": 8, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2, "ffn_size": 8,
        "rope_theta": 1e4,
    }  # fmt: skip
    with pytest.raises(ConfigError, match=words):
        DecoderSpec(**{**numbers, **changes})  # type: ignore[arg-type]


def test_a_spec_can_be_made_without_importing_torch() -> None:
    code = "import sys; from diffulex_core.layers import DecoderSpec; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
