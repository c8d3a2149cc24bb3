"""LLaDA checkpoints in their published layout: every tensor lands where it belongs, every fault is named."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from diffulex_core.context import BuildContext
from diffulex_core.errors import CheckpointError
from diffulex_core.host import Host
from diffulex_core.plugin import Capability
from diffulex_core.weights import LoadReport, load_weights
from diffulex_llada import plugin
from diffulex_llada.model import build
from diffulex_llada.weights import WEIGHTS
from tests.core.checkpoints import Checkpoint, llada_tensors, write_llada_checkpoint, write_weights

BLOCK = "model.transformer.blocks"
CONFIGS = {
    "plain": {},
    "tied": {"weight_tying": True},
    "biases": {"include_bias": True},
    "qkv_bias": {"include_qkv_bias": True, "n_kv_heads": 4},
}


def empty_model(checkpoint: Checkpoint) -> nn.Module:
    model = build(checkpoint.config, BuildContext(dtype=torch.float32, device=torch.device("cpu")))
    assert isinstance(model, nn.Module)
    for tensor in model.parameters():
        tensor.fill_(float("nan"))
    return model


def load(checkpoint: Checkpoint, model: nn.Module | None = None) -> LoadReport:
    model = model or empty_model(checkpoint)
    device = torch.device("cpu")
    return load_weights(
        model, WEIGHTS, checkpoint.folder, checkpoint.config, dtype=torch.float32, device=device, progress=False
    )


def values(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors]).sort().values


@pytest.mark.parametrize("name", CONFIGS)
def test_each_tensor_is_claimed_once_and_every_element_is_written(tmp_path: Path, name: str) -> None:
    checkpoint = write_llada_checkpoint(tmp_path, **CONFIGS[name])
    numbered, counter = {}, 0
    for key, tensor in checkpoint.tensors.items():
        numbered[key] = torch.arange(counter, counter + tensor.numel(), dtype=torch.float32).view(tensor.shape)
        counter += tensor.numel()
    write_weights(tmp_path, numbered)
    model = empty_model(checkpoint)
    report = load(checkpoint, model)
    assert report.tensors == len(numbered)
    assert report.skipped == {}
    assert torch.equal(values(model.parameters()), values(numbered.values()))
    state = model.state_dict()
    assert torch.equal(state["layers.1.mlp.down.weight"], numbered[f"{BLOCK}.1.ff_out.weight"])
    assert torch.equal(state["layers.1.attn.out.weight"], numbered[f"{BLOCK}.1.attn_out.weight"])
    gate, up = state["layers.0.mlp.gate_up.weight"].chunk(2)
    assert torch.equal(gate, numbered[f"{BLOCK}.0.ff_proj.weight"])
    assert torch.equal(up, numbered[f"{BLOCK}.0.up_proj.weight"])
    head = "wte" if name == "tied" else "ff_out"
    assert torch.equal(state["lm_head.weight"], numbered[f"model.transformer.{head}.weight"])


def test_the_number_and_order_of_files_does_not_matter(tmp_path: Path) -> None:
    one = write_llada_checkpoint(tmp_path / "one", seed=5)
    many = write_llada_checkpoint(tmp_path / "many", seed=5, files=4)
    models = []
    for checkpoint in (one, many):
        save_file({"stray": torch.zeros(1)}, checkpoint.folder / "zz-stray.safetensors")
        models.append(empty_model(checkpoint))
        load(checkpoint, models[-1])
    for ours, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_every_fault_of_a_checkpoint_is_in_one_error(tmp_path: Path) -> None:
    checkpoint = write_llada_checkpoint(tmp_path)
    stored = llada_tensors(checkpoint.config, 0)
    del stored[f"{BLOCK}.1.k_proj.weight"], stored["model.transformer.ln_f.weight"]
    stored[f"{BLOCK}.0.up_proj.weight"] = torch.zeros(47, 32)
    stored[f"{BLOCK}.0.ff_out.weight"] = torch.zeros(48, 32)
    stored[f"{BLOCK}.2.ff_out.weight"] = torch.zeros(32, 48)
    stored[f"{BLOCK}.0.q_proj.bias"] = torch.zeros(32)
    stored["lm_head.weight"] = stored["model.transformer.ff_out.weight"].clone()
    write_weights(tmp_path, stored)
    with pytest.raises(CheckpointError) as raised:
        load(checkpoint)
    text = "\n".join(raised.value.problems)
    assert len(raised.value.problems) == 7, text
    for words in (
        f"has no '{BLOCK}.1.k_proj.weight'",
        "has no 'model.transformer.ln_f.weight'",
        (
            f"'{BLOCK}.0.up_proj.weight' in model.safetensors has shape [47, 32], but"
            " 'layers.0.mlp.gate_up.weight' (part 'up') has [48, 32]"
        ),
        f"'{BLOCK}.0.ff_out.weight' in model.safetensors has shape [48, 32]",
        f"'{BLOCK}.2.ff_out.weight' [32, 48] in model.safetensors has no place",
        f"'{BLOCK}.0.q_proj.bias' [32] in model.safetensors has no place",
        "both fill 'lm_head.weight'",
    ):
        assert words in text


def test_a_checkpoint_without_head_is_incomplete_unless_it_is_tied(tmp_path: Path) -> None:
    checkpoint = write_llada_checkpoint(tmp_path)
    stored = {name: t for name, t in checkpoint.tensors.items() if name != "model.transformer.ff_out.weight"}
    write_weights(tmp_path, stored)
    with pytest.raises(CheckpointError, match=r"no 'model\.transformer\.ff_out\.weight'"):
        load(checkpoint)
    tied = Checkpoint(folder=tmp_path, config={**checkpoint.config, "weight_tying": True}, tensors=stored)
    load(tied)


def test_a_tied_checkpoint_with_another_head_is_refused(tmp_path: Path) -> None:
    checkpoint = write_llada_checkpoint(tmp_path)
    tied = Checkpoint(folder=tmp_path, config={**checkpoint.config, "weight_tying": True}, tensors=checkpoint.tensors)
    with pytest.raises(CheckpointError, match=r"transformer\.ff_out\.weight'.* differ, but the model ties them"):
        load(tied)


def test_a_written_checkpoint_has_the_files_of_a_published_one(tmp_path: Path) -> None:
    write_llada_checkpoint(tmp_path, files=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
        "model.safetensors.index.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["LLaDAModelLM"]


def test_the_family_is_registered_under_its_names_and_its_references_lead_somewhere() -> None:
    host = Host.discover([plugin.__name__], environ={}, extra=[plugin])
    entry = host.models.entry("llada")
    family = entry.descriptor
    assert family.architectures == ("LLaDAModelLM",)
    assert family.model_types == ("llada",)
    assert {Capability.MASK_TOKEN, Capability.BLOCK_CAUSAL, Capability.FULL_PREFIX} <= family.provides
    assert host.load(family.build, provenance=entry.provenance) is build
    assert host.load(family.weights, provenance=entry.provenance) is WEIGHTS
    tiny = host.load(family.tiny or "", provenance=entry.provenance)
    assert host.load(family.check_config or "", provenance=entry.provenance)(tiny) == []
    assert callable(host.load(family.hf_reference or "", provenance=entry.provenance))
