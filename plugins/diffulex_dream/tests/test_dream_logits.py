"""Logits of Dream and DreamReasoner against transformers' own networks with the same weights and explicit masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from diffulex_core.attention.cpu import TorchCPU
from diffulex_core.attention.reference import TorchReference
from diffulex_core.context import BuildContext
from diffulex_core.errors import CheckpointError
from diffulex_core.protocols import AttentionBackend, DiffusionModel
from diffulex_core.weights import WeightRules, load_weights
from diffulex_dream import oracle, weights
from diffulex_dream.config import TINY_DREAM, TINY_REASONER
from diffulex_dream.model import build_dream, build_reasoner
from tests.core.checkpoints import Checkpoint
from tests.core.forward import CPU, Rows, block_causal, pages, run_model
from tests.families.oracle_logits import PAGE, check_cached, check_whole, oracle_logits, token_ids
from tests.families.standard_checkpoints import standard_tensors, write_checkpoint

BLOCK = 4


@attrs.frozen(kw_only=True, eq=False)
class Network:
    """One family's network, its oracle, and the tensors of its checkpoints."""

    tiny: Mapping[str, Any]
    build: Callable[[Mapping[str, object], BuildContext], DiffusionModel]
    rules: WeightRules
    oracle: Callable[[Mapping[str, Any], Mapping[str, Tensor]], PreTrainedModel]
    extra: Mapping[str, bool]

    def write(self, folder: Path, *, dtype: torch.dtype = torch.float32, **changes: Any) -> Checkpoint:
        config = {**self.tiny, **changes}
        return write_checkpoint(folder, config, standard_tensors(config, 3, **self.extra), files=2, dtype=dtype)

    def load(self, checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> DiffusionModel:
        model = self.build(checkpoint.config, BuildContext(dtype=dtype, device=torch.device("meta")))
        load_weights(model, self.rules, checkpoint.folder, checkpoint.config, dtype=dtype, device=CPU, progress=False)
        return model

    def reference(self, checkpoint: Checkpoint) -> PreTrainedModel:
        return self.oracle(checkpoint.config, checkpoint.tensors)


DREAM = Network(tiny=TINY_DREAM, build=build_dream, rules=weights.DREAM, oracle=oracle.qwen2, extra={"qkv_bias": True})
REASONER = Network(
    tiny=TINY_REASONER, build=build_reasoner, rules=weights.REASONER, oracle=oracle.qwen3, extra={"qk_norm": True}
)
VARIANTS: Mapping[str, tuple[Network, Mapping[str, Any]]] = {
    "dream": (DREAM, {}),
    "dream multi-head": (DREAM, {"num_key_value_heads": 4}),
    "dream seven queries a key": (DREAM, {"hidden_size": 56, "num_attention_heads": 14}),
    "dream tied": (DREAM, {"tie_word_embeddings": True}),
    "dream other theta": (DREAM, {"rope_theta": 10000.0}),
    "reasoner": (REASONER, {}),
    "reasoner multi-head": (REASONER, {"num_key_value_heads": 4}),
    "reasoner head_dim null": (REASONER, {"head_dim": None}),
    "reasoner tied": (REASONER, {"tie_word_embeddings": True}),
}
EACH_NETWORK = pytest.mark.parametrize("network", [DREAM, REASONER], ids=["dream", "dream_reasoner"])


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


@pytest.mark.parametrize(
    ("network", "left_out"),
    [(DREAM, "qkv.bias"), (REASONER, "q_norm"), (REASONER, "k_norm")],
    ids=["dream qkv.bias", "reasoner q_norm", "reasoner k_norm"],
)
def test_what_sets_the_two_apart_matters(tmp_path: Path, network: Network, left_out: str) -> None:
    checkpoint = network.write(tmp_path)
    model, ids = network.load(checkpoint), token_ids(9, 101)
    assert isinstance(model, nn.Module)
    for name, parameter in model.named_parameters():
        if left_out in name:
            parameter.fill_(1.0 if "norm" in left_out else 0.0)
    rows = Rows(tokens=ids.tolist(), key_end=block_causal(9, BLOCK), table=[0, 1, 2])
    (got,) = run_model(model, [rows], pages(model.kv_geometry, 3, PAGE))
    assert (got - oracle_logits(network.reference(checkpoint), ids, block_causal(9, BLOCK))).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("network", "tensors", "words"),
    [
        (DREAM, REASONER, r"'model\.layers\.0\.self_attn\.q_norm\.weight'.*only DreamReasoner.*read as Dream \("),
        (REASONER, DREAM, r"'model\.layers\.1\.self_attn\.v_proj\.bias'.*only Dream \(.*read as DreamReasoner"),
    ],
    ids=["a reasoner's tensors as Dream", "Dream's tensors as a reasoner"],
)
def test_tensors_that_contradict_config_json_are_refused_with_both_sides_named(
    tmp_path: Path, network: Network, tensors: Network, words: str
) -> None:
    stored = standard_tensors({**network.tiny, "num_hidden_layers": 2}, 3, **tensors.extra)
    checkpoint = write_checkpoint(tmp_path, network.tiny, stored)
    with pytest.raises(CheckpointError, match=words):
        network.load(checkpoint)
