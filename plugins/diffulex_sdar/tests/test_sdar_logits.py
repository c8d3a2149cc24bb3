"""Logits of SDAR and Stable-DiffCoder against transformers' own networks with the same weights and explicit masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from diffulex_core.attention.cpu import TorchCPU
from diffulex_core.attention.reference import TorchReference
from diffulex_core.context import BuildContext
from diffulex_core.protocols import AttentionBackend, DiffusionModel
from diffulex_core.weights import load_weights
from diffulex_sdar import oracle
from diffulex_sdar.config import TINY_SDAR, TINY_SDAR_MOE, TINY_STABLE_DIFFCODER
from diffulex_sdar.model import build_sdar, build_sdar_moe, build_stable_diffcoder
from diffulex_sdar.weights import WEIGHTS
from tests.core.checkpoints import Checkpoint
from tests.core.forward import CPU, Rows, block_causal, pages, run_model
from tests.families.oracle_logits import PAGE, check_cached, check_whole, oracle_logits, token_ids
from tests.families.standard_checkpoints import standard_tensors, write_checkpoint

BLOCK = 4


@attrs.frozen(kw_only=True, eq=False)
class Network:
    """One family's network, its oracle, and the shape of its checkpoints."""

    tiny: Mapping[str, Any]
    build: Callable[[Mapping[str, object], BuildContext], DiffusionModel]
    oracle: Callable[[Mapping[str, Any], Mapping[str, torch.Tensor]], PreTrainedModel]
    qk_norm: bool

    def write(self, folder: Path, *, dtype: torch.dtype = torch.float32, **changes: Any) -> Checkpoint:
        config = {**self.tiny, **changes}
        return write_checkpoint(folder, config, standard_tensors(config, 7, qk_norm=self.qk_norm), files=2, dtype=dtype)

    def load(self, checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> DiffusionModel:
        model = self.build(checkpoint.config, BuildContext(dtype=dtype, device=torch.device("meta")))
        load_weights(model, WEIGHTS, checkpoint.folder, checkpoint.config, dtype=dtype, device=CPU, progress=False)
        return model

    def reference(self, checkpoint: Checkpoint) -> PreTrainedModel:
        return self.oracle(checkpoint.config, checkpoint.tensors)


SDAR = Network(tiny=TINY_SDAR, build=build_sdar, oracle=oracle.qwen3, qk_norm=True)
SDAR_MOE = Network(tiny=TINY_SDAR_MOE, build=build_sdar_moe, oracle=oracle.qwen3_moe, qk_norm=True)
STABLE_DIFFCODER = Network(tiny=TINY_STABLE_DIFFCODER, build=build_stable_diffcoder, oracle=oracle.llama, qk_norm=False)
VARIANTS: Mapping[str, tuple[Network, Mapping[str, Any]]] = {
    "sdar": (SDAR, {}),
    "sdar multi-head": (SDAR, {"num_key_value_heads": 4}),
    "sdar multi-query": (SDAR, {"num_key_value_heads": 1}),
    "sdar tied": (SDAR, {"tie_word_embeddings": True}),
    "sdar narrow heads": (SDAR, {"head_dim": 4}),
    "sdar nested theta": (SDAR, {"rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}}),
    "sdar_moe": (SDAR_MOE, {}),
    "sdar_moe without renormalisation": (SDAR_MOE, {"norm_topk_prob": False}),
    "sdar_moe every second layer": (SDAR_MOE, {"decoder_sparse_step": 2, "mlp_only_layers": []}),
    "sdar_moe all layers, one expert each": (SDAR_MOE, {"num_experts_per_tok": 1, "mlp_only_layers": []}),
    "sdar_moe multi-head tied": (SDAR_MOE, {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    "stable_diffcoder": (STABLE_DIFFCODER, {}),
    "stable_diffcoder multi-head": (STABLE_DIFFCODER, {"num_key_value_heads": 4}),
    "stable_diffcoder wide heads": (STABLE_DIFFCODER, {"head_dim": 12}),
    "stable_diffcoder tied": (STABLE_DIFFCODER, {"tie_word_embeddings": True}),
}
EACH_NETWORK = pytest.mark.parametrize(
    "network", [SDAR, SDAR_MOE, STABLE_DIFFCODER], ids=["sdar", "sdar_moe", "stable_diffcoder"]
)


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_the_oracles_with_all_positions_visible_and_block_causally(tmp_path: Path, variant: str) -> None:
    network, changes = VARIANTS[variant]
    checkpoint = network.write(tmp_path, **changes)
    check_whole(network.load(checkpoint), network.reference(checkpoint), block=BLOCK)


@pytest.mark.parametrize("backend", [TorchCPU(), TorchReference()], ids=["torch_cpu", "torch_ref"])
@EACH_NETWORK
def test_decoding_block_by_block_from_the_cache_equals_the_whole_sequence(
    tmp_path: Path, network: Network, backend: AttentionBackend
) -> None:
    checkpoint = network.write(tmp_path)
    check_cached(network.load(checkpoint), network.reference(checkpoint), block=BLOCK, backend=backend)


@pytest.mark.parametrize("block", [8, 16])
def test_larger_blocks_see_further(tmp_path: Path, block: int) -> None:
    checkpoint = SDAR.write(tmp_path)
    check_cached(SDAR.load(checkpoint), SDAR.reference(checkpoint), block=block)


def test_an_oracle_without_a_mask_is_another_network(tmp_path: Path) -> None:
    checkpoint = SDAR.write(tmp_path)
    reference, ids = SDAR.reference(checkpoint), token_ids(9, 101)
    with torch.no_grad():
        causal = reference(input_ids=ids[None], use_cache=False).logits[0]
    assert (causal - oracle_logits(reference, ids, block_causal(9, BLOCK))).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@EACH_NETWORK
def test_half_precision_stays_near_the_fp32_oracle(tmp_path: Path, network: Network, dtype: torch.dtype) -> None:
    """The logits' error, relative to the largest logit, is below 3% in bf16 (8 bits) and 0.5% in fp16 (11 bits)."""
    checkpoint = network.write(tmp_path, dtype=dtype)
    model, ids = network.load(checkpoint, dtype), token_ids(9, 101)
    rows = Rows(tokens=ids.tolist(), key_end=block_causal(9, BLOCK), table=[0, 1, 2])
    (got,) = run_model(model, [rows], pages(model.kv_geometry, 3, PAGE))
    expected = oracle_logits(network.reference(checkpoint), ids, block_causal(9, BLOCK))
    assert got.dtype == dtype
    bound = {torch.bfloat16: 0.03, torch.float16: 0.005}[dtype]
    assert (got.float() - expected).abs().max() < bound * expected.abs().max()


@pytest.mark.parametrize("left_out", ["q_norm", "k_norm"])
def test_query_and_key_norms_matter(tmp_path: Path, left_out: str) -> None:
    checkpoint = SDAR.write(tmp_path)
    model, ids = SDAR.load(checkpoint), token_ids(9, 101)
    assert isinstance(model, nn.Module)
    for name, parameter in model.named_parameters():
        if left_out in name:
            parameter.fill_(1.0)
    rows = Rows(tokens=ids.tolist(), key_end=block_causal(9, BLOCK), table=[0, 1, 2])
    (got,) = run_model(model, [rows], pages(model.kv_geometry, 3, PAGE))
    assert (got - oracle_logits(SDAR.reference(checkpoint), ids, block_causal(9, BLOCK))).abs().max() > 1e-3
