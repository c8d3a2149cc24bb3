"""LLaDA2's logits against transformers' GLM-4-MoE with the same weights and explicit masks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor, nn
from transformers import Glm4MoeForCausalLM

from diffulex_core.attention.cpu import TorchCPU
from diffulex_core.attention.reference import TorchReference
from diffulex_core.context import BuildContext, SoftInputs
from diffulex_core.kernels.moe.naive import NaiveExperts
from diffulex_core.protocols import AttentionBackend, DiffusionModel
from diffulex_core.weights import load_weights
from diffulex_llada.llada2.config import TINY
from diffulex_llada.llada2.model import build
from diffulex_llada.llada2.oracle import hf_reference
from diffulex_llada.llada2.weights import WEIGHTS
from tests.core.checkpoints import Checkpoint, write_weights
from tests.core.forward import CPU, Rows, all_visible, block_causal, pages, run_model
from tests.families.llada2_checkpoints import llada2_tensors, merged
from tests.families.oracle_logits import PAGE, check_cached, check_close, check_whole, oracle_logits, token_ids
from tests.families.standard_checkpoints import write_checkpoint

BLOCK = 4
VOCAB = 259
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "three layers, eight experts in four groups": {},
    "every layer sparse": {"first_k_dense_replace": 0},
    "every layer dense": {"first_k_dense_replace": 3},
    "two shared experts": {"num_shared_experts": 2},
    "weights as they are": {"norm_topk_prob": False, "routed_scaling_factor": 1.0},
    "no correction bias": {"moe_router_enable_expert_bias": False},
    "one group": {"n_group": 1, "topk_group": 1},
    "all groups": {"topk_group": 4},
    "all experts": {"topk_group": 4, "num_experts_per_tok": 8},
    "no query and key norms": {"use_qk_norm": False},
    "query, key and value biases": {"use_qkv_bias": True},
    "multi-head": {"num_key_value_heads": 4},
    "multi-query": {"num_key_value_heads": 1},
    "whole heads rotated": {"partial_rotary_factor": 1.0},
    "a third of each head rotated": {"partial_rotary_factor": 1 / 3, "rope_theta": 10000.0},
    "tied": {"tie_word_embeddings": True},
}


def write(folder: Path, *, seed: int = 7, dtype: torch.dtype = torch.float32, **changes: Any) -> Checkpoint:
    config = {**TINY, "vocab_size": VOCAB, "mask_token_id": 257, "eos_token_id": 256, "pad_token_id": 256, **changes}
    return write_checkpoint(folder, config, llada2_tensors(config, seed), files=2, dtype=dtype)


def load(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32, **ctx: Any) -> DiffusionModel:
    model = build(checkpoint.config, BuildContext(dtype=dtype, device=torch.device("meta"), **ctx))
    load_weights(model, WEIGHTS, checkpoint.folder, checkpoint.config, dtype=dtype, device=CPU, progress=False)
    return model


def reference(checkpoint: Checkpoint) -> Glm4MoeForCausalLM:
    return hf_reference(checkpoint.config, checkpoint.tensors)


def run(model: DiffusionModel, ids: Tensor) -> Tensor:
    """Block-causal logits of a whole sequence."""
    count = -(-len(ids) // PAGE)
    rows = Rows(tokens=ids.tolist(), key_end=block_causal(len(ids), BLOCK), table=range(count))
    [found] = run_model(model, [rows], pages(model.kv_geometry, count, PAGE))
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_the_oracles_with_all_positions_visible_and_block_causally(tmp_path: Path, variant: str) -> None:
    checkpoint = write(tmp_path, **VARIANTS[variant])
    check_whole(load(checkpoint), reference(checkpoint), block=BLOCK)


@pytest.mark.parametrize("backend", [TorchCPU(), TorchReference()], ids=["torch_cpu", "torch_ref"])
def test_decoding_block_by_block_from_the_cache_equals_the_whole_sequence(
    tmp_path: Path, backend: AttentionBackend
) -> None:
    checkpoint = write(tmp_path)
    check_cached(load(checkpoint), reference(checkpoint), block=BLOCK, backend=backend)


def test_a_bias_of_the_attentions_output_is_added(tmp_path: Path) -> None:
    """GLM's linear layer has none there; it adds one that is put into it."""
    checkpoint = write(tmp_path, use_bias=True)
    biases = {name: tensor for name, tensor in checkpoint.tensors.items() if name.endswith("dense.bias")}
    assert len(biases) == 3
    plain = {name: tensor for name, tensor in checkpoint.tensors.items() if name not in biases}
    oracle = hf_reference(checkpoint.config, plain)
    for layer in range(3):
        bias = biases[f"model.layers.{layer}.attention.dense.bias"]
        oracle.model.layers[layer].self_attn.o_proj.bias = nn.Parameter(bias)
    ids = token_ids(9, VOCAB)
    check_close(run(load(checkpoint), ids), oracle_logits(oracle, ids, block_causal(9, BLOCK)))


def test_a_layer_without_shared_experts_is_one_whose_shared_expert_is_zero(tmp_path: Path) -> None:
    one = write(tmp_path / "one")
    tensors = {name: t.zero_() if "shared_experts" in name else t for name, t in one.tensors.items()}
    write_weights(one.folder, tensors, 2)
    none = write(tmp_path / "none", num_shared_experts=0)
    write_weights(none.folder, {name: t for name, t in tensors.items() if "shared_experts" not in name}, 2)
    ids = token_ids(9, VOCAB)
    assert torch.equal(run(load(none), ids), run(load(one), ids))


@pytest.mark.parametrize("groups", [0, 3])
def test_groups_that_do_not_divide_the_experts_are_none(tmp_path: Path, groups: int) -> None:
    checkpoint = write(tmp_path, n_group=groups)
    plain = Checkpoint(
        folder=tmp_path, config={**checkpoint.config, "n_group": 1, "topk_group": 1}, tensors=checkpoint.tensors
    )
    ids = token_ids(9, VOCAB)
    check_close(run(load(checkpoint), ids), oracle_logits(reference(plain), ids, block_causal(9, BLOCK)))


def test_merged_experts_and_the_other_name_of_the_bias_load_alike(tmp_path: Path) -> None:
    checkpoint = write(tmp_path / "apart")
    stacked = {
        name.replace("gate.expert_bias", "gate.e_score_correction_bias"): tensor
        for name, tensor in merged(checkpoint.tensors).items()
    }
    assert "model.layers.1.mlp.experts.gate_proj" in stacked
    other = write_checkpoint(tmp_path / "merged", checkpoint.config, stacked, files=2)
    first, second = load(checkpoint), load(other)
    assert isinstance(first, nn.Module)
    assert isinstance(second, nn.Module)
    state = second.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in first.state_dict().items())


def test_the_naive_experts_are_the_same_network(tmp_path: Path) -> None:
    checkpoint, ids = write(tmp_path), token_ids(9, VOCAB)
    check_close(run(load(checkpoint, experts_kernel=NaiveExperts), ids), run(load(checkpoint), ids))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_half_precision_stays_near_the_fp32_oracle(tmp_path: Path, dtype: torch.dtype, bound: float) -> None:
    """The logits' error relative to the largest logit; the router's scores stay fp32, so that experts rarely change."""
    checkpoint = write(tmp_path, dtype=dtype)
    model, ids = load(checkpoint, dtype), token_ids(9, VOCAB)
    expected = oracle_logits(reference(checkpoint), ids, block_causal(9, BLOCK))
    found = run(model, ids)
    assert found.dtype == dtype
    assert (found.float() - expected).abs().max() < bound * expected.abs().max()
    assert isinstance(model, nn.Module)
    state = model.state_dict()
    assert state["layers.1.mlp.router.weight"].dtype == state["layers.1.mlp.router.bias"].dtype == torch.float32


@pytest.mark.parametrize("left_out", ["router.bias", "q_norm", "k_norm", "shared.down"])
def test_every_part_of_the_network_matters(tmp_path: Path, left_out: str) -> None:
    checkpoint, ids = write(tmp_path), token_ids(9, VOCAB)
    model = load(checkpoint)
    assert isinstance(model, nn.Module)
    for name, tensor in model.state_dict().items():
        if left_out in name:
            tensor.fill_(1.0 if "norm" in left_out else 0.0)
    expected = oracle_logits(reference(checkpoint), ids, block_causal(9, BLOCK))
    assert (run(model, ids) - expected).abs().max() > 1e-2


def test_soft_inputs_take_the_place_of_embeddings(tmp_path: Path) -> None:
    """The soft embedding of one certain token is that token's."""
    checkpoint, ids = write(tmp_path), token_ids(8, VOCAB)
    model = load(checkpoint)
    assert isinstance(model, nn.Module)
    table = model.get_parameter("embed.weight")
    masked = ids.clone()
    masked[[2, 5]] = 257

    class Soft(nn.Module):
        """The network, fed embeddings for two rows."""

        kv_geometry, windows, vocab_size = model.kv_geometry, model.windows, model.vocab_size

        def forward(self, input_ids: Tensor, positions: Tensor, ctx: Any) -> Tensor:
            soft = SoftInputs(rows=torch.tensor([2, 5]), embeddings=table[ids[[2, 5]]])
            hidden: Tensor = model(input_ids, positions, attrs.evolve(ctx, soft=soft))
            return hidden

        def logits(self, hidden: Tensor) -> Tensor:
            return model.logits(hidden)

    rows = Rows(tokens=masked.tolist(), key_end=all_visible(8), table=[0, 1])
    [found] = run_model(Soft(), [rows], pages(model.kv_geometry, 2, PAGE))
    hard = Rows(tokens=ids.tolist(), key_end=all_visible(8), table=[0, 1])
    [expected] = run_model(model, [hard], pages(model.kv_geometry, 2, PAGE))
    assert torch.equal(found, expected)
