"""LLaDA2 checkpoints: packed projections, layers for further tokens, and faults that are named."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffulex_core.context import BuildContext
from diffulex_core.distributed import ALONE, Communicator, Seat
from diffulex_core.errors import CheckpointError, ConfigError
from diffulex_core.weights import LoadReport, load_weights
from diffulex_llada.llada2.config import TINY
from diffulex_llada.llada2.model import build
from diffulex_llada.llada2.weights import WEIGHTS
from tests.core.checkpoints import write_weights
from tests.families.llada2_checkpoints import llada2_tensors

CPU = torch.device("cpu")
ATTENTION, MLP = "model.layers.1.attention", "model.layers.1.mlp"


def load(
    folder: Path, tensors: Mapping[str, Tensor], tp: Communicator = ALONE, **changes: Any
) -> tuple[Mapping[str, Tensor], LoadReport]:
    """The network's state after loading, and the loader's report."""
    config = {**TINY, **changes}
    write_weights(folder, tensors, 2)
    model = build(config, BuildContext(dtype=torch.float32, device=torch.device("meta"), tp=tp))
    assert isinstance(model, nn.Module)
    report = load_weights(model, WEIGHTS, folder, config, dtype=torch.float32, device=CPU, progress=False)
    return model.state_dict(), report


def problems(folder: Path, tensors: Mapping[str, Tensor], **changes: Any) -> list[str]:
    with pytest.raises(CheckpointError) as raised:
        load(folder, tensors, **changes)
    return list(raised.value.problems)


def test_the_packed_projection_is_queries_then_keys_then_values(tmp_path: Path) -> None:
    tensors = llada2_tensors(TINY, 0)
    state, report = load(tmp_path, tensors)
    assert torch.equal(state["layers.1.attn.qkv.weight"], tensors[f"{ATTENTION}.query_key_value.weight"])
    assert report.tensors == len(tensors)
    assert report.skipped == {}


def test_each_process_takes_the_rows_of_its_heads_from_each_third(tmp_path: Path) -> None:
    tensors = llada2_tensors(TINY, 0)
    q, k, v = tensors[f"{ATTENTION}.query_key_value.weight"].split([48, 24, 24])
    for rank in range(4):  # four query heads; two key/value heads, each held by two neighbours
        state, _ = load(tmp_path, tensors, Seat(rank, 4))
        head, kv = slice(12 * rank, 12 * rank + 12), slice(12 * (rank // 2), 12 * (rank // 2) + 12)
        assert torch.equal(state["layers.1.attn.qkv.weight"], torch.cat((q[head], k[kv], v[kv])))
        experts = state["layers.1.mlp.experts.w2"]
        assert torch.equal(experts[0], tensors[f"{MLP}.experts.{2 * rank}.down_proj.weight"])
        assert torch.equal(state["layers.1.mlp.router.weight"], tensors[f"{MLP}.gate.weight"])
        assert torch.equal(state["layers.1.mlp.router.bias"], tensors[f"{MLP}.gate.expert_bias"])


def test_experts_that_do_not_divide_evenly_are_refused() -> None:
    config = {**TINY, "num_experts": 6, "n_group": 3}
    with pytest.raises(ConfigError, match="tensor_parallel_size 4 does not divide the number of experts, which is 6"):
        build(config, BuildContext(dtype=torch.float32, device=torch.device("meta"), tp=Seat(0, 4)))


def with_further_layer(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The checkpoint of a fork that trained a layer for multi-token prediction behind the last one."""
    block = {f"model.layers.3.{name.split('.', 3)[3]}": t for name, t in tensors.items() if ".layers.2." in name}
    extra = {f"model.layers.3.{leaf}.weight": torch.ones(32) for leaf in ("enorm", "hnorm", "final_layernorm")}
    return {**tensors, **block, **extra, "model.layers.3.eh_proj.weight": torch.ones(32, 64)}


def test_layers_for_multi_token_prediction_are_skipped_with_the_reason(tmp_path: Path) -> None:
    tensors = llada2_tensors(TINY, 0)
    longer = with_further_layer(tensors)
    _, report = load(tmp_path, longer, num_nextn_predict_layers=1)
    assert set(report.skipped) == set(longer) - set(tensors)
    assert all("multi-token prediction" in reason for reason in report.skipped.values())


def test_norms_for_multi_token_prediction_in_a_layer_of_the_network_are_a_fault(tmp_path: Path) -> None:
    [problem] = problems(tmp_path, {**llada2_tensors(TINY, 0), "model.layers.2.enorm.weight": torch.ones(32)})
    assert "'model.layers.2.enorm.weight' [32]" in problem
    assert "has no place in this model" in problem


@pytest.mark.parametrize("name", ["model.rotary_emb.inv_freq", "model.layers.0.attention.rotary_emb.inv_freq"])
def test_stored_rotary_frequencies_are_skipped_with_the_reason(tmp_path: Path, name: str) -> None:
    _, report = load(tmp_path, {**llada2_tensors(TINY, 0), name: torch.ones(3)})
    assert report.skipped == {name: "rotary frequencies are computed from config.json"}


def test_a_layer_that_config_json_does_not_count_is_a_fault(tmp_path: Path) -> None:
    longer = with_further_layer(llada2_tensors(TINY, 0))
    found = problems(tmp_path, longer)
    assert all("'model.layers.3." in problem and "has no place in this model" in problem for problem in found)
    assert any("query_key_value" in problem for problem in found)


def test_a_bias_that_config_json_denies_has_no_place_and_one_that_it_asks_for_must_be_there(tmp_path: Path) -> None:
    tensors = llada2_tensors(TINY, 0)
    denied = problems(tmp_path, tensors, moe_router_enable_expert_bias=False)
    assert len(denied) == 2
    assert all("expert_bias" in problem and "has no place" in problem for problem in denied)
    without = {name: tensor for name, tensor in tensors.items() if "expert_bias" not in name}
    missing = problems(tmp_path, without)
    assert len(missing) == 2
    assert f"'{MLP}.gate.expert_bias' or '{MLP}.gate.e_score_correction_bias'" in missing[0]


def test_a_bias_under_both_its_names_is_stored_twice(tmp_path: Path) -> None:
    tensors = llada2_tensors(TINY, 0)
    tensors[f"{MLP}.gate.e_score_correction_bias"] = tensors[f"{MLP}.gate.expert_bias"].clone()
    [problem] = problems(tmp_path, tensors)
    assert "both fill 'layers.1.mlp.router.bias'" in problem


def test_a_missing_projection_is_reported_once_by_its_packed_name(tmp_path: Path) -> None:
    tensors = llada2_tensors(TINY, 0)
    del tensors[f"{ATTENTION}.query_key_value.weight"]
    [problem] = problems(tmp_path, tensors)
    assert f"has no '{ATTENTION}.query_key_value.weight'" in problem
