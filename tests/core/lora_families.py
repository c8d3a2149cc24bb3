"""Networks that adapters are tested over: LLaDA, a Qwen2, a packed one and a mixture of experts, and oracles."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PretrainedConfig, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from diffulex_core.context import BuildContext
from diffulex_core.layers import DecoderSpec, build_decoder
from diffulex_core.layers.moe import MoESpec
from diffulex_core.protocols import DiffusionModel
from diffulex_core.weights import STANDARD_DECODER, STANDARD_EXPERTS, Rename, WeightRules
from diffulex_llada.model import build as build_llada
from diffulex_llada.oracle import hf_reference
from diffulex_llada.weights import WEIGHTS as LLADA
from tests.core.checkpoints import Checkpoint, write_llada_checkpoint
from tests.core.lora_kit import Family
from tests.families.standard_checkpoints import standard_tensors, write_checkpoint

CONFIG: Mapping[str, Any] = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
}  # fmt: skip
EXPERTS: Mapping[str, Any] = {"num_experts": 4, "moe_intermediate_size": 24, "mlp_only_layers": [0]}

LLAMA_NAMES = {
    "q_proj": "self_attn.q_proj", "k_proj": "self_attn.k_proj", "v_proj": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj", "ff_proj": "mlp.gate_proj", "up_proj": "mlp.up_proj", "ff_out": "mlp.down_proj",
}  # fmt: skip


@attrs.frozen(kw_only=True)
class Case:
    """A family, a checkpoint of it, and the same network from transformers.

    Attributes:
        family: ours.
        write: makes a checkpoint.
        oracle: transformers' network with a checkpoint's weights.
        names: path of a layer in the checkpoint -> its path in the oracle, for all linear layers and the embedding.
    """

    family: Family
    write: Callable[[Path], Checkpoint]
    oracle: Callable[[Checkpoint], PreTrainedModel]
    names: Mapping[str, str]


def _spec(config: Mapping[str, Any], **more: Any) -> DecoderSpec:
    return DecoderSpec(
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        num_kv_heads=config["num_key_value_heads"],
        head_dim=config["head_dim"],
        ffn_size=config["intermediate_size"],
        rope_theta=config["rope_theta"],
        norm_eps=config["rms_norm_eps"],
        **more,
    )


def _oracle(
    kind: type[PreTrainedModel], config_kind: type[PretrainedConfig], checkpoint: Checkpoint
) -> PreTrainedModel:
    numbers = {key: value for key, value in checkpoint.config.items() if key != "rope_theta"}
    config = config_kind(**numbers, rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    model = kind(config)
    model.set_attn_implementation("eager")
    model.load_state_dict({name: tensor.float() for name, tensor in checkpoint.tensors.items()})
    return model.eval()


def _standard_names(mlp: tuple[str, ...] = ("gate", "up", "down")) -> dict[str, str]:
    paths = ["model.embed_tokens", "lm_head"]
    for layer in range(2):
        paths += [f"model.layers.{layer}.self_attn.{part}_proj" for part in "qkvo"]
        paths += [f"model.layers.{layer}.mlp.{part}_proj" for part in mlp]
    return {path: path for path in paths}


LLADA_CASE = Case(
    family=Family(build=build_llada, weights=LLADA),
    write=lambda folder: write_llada_checkpoint(folder, vocab_size=97, embedding_size=104, mask_token_id=95),
    oracle=lambda checkpoint: hf_reference(checkpoint.config, checkpoint.tensors),
    names={
        "model.transformer.wte": "model.embed_tokens",
        "model.transformer.ff_out": "lm_head",
        **{
            f"model.transformer.blocks.{layer}.{ours}": f"model.layers.{layer}.{theirs}"
            for layer in range(2)
            for ours, theirs in LLAMA_NAMES.items()
        },
    },
)
"""Names of its own; query, key and value, gate and up are stored apart."""


def _write_qwen2(folder: Path) -> Checkpoint:
    tensors = standard_tensors(CONFIG, 1, qk_norm=False)
    generator = torch.Generator().manual_seed(9)
    for name in [name for name in tensors if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight"))]:
        tensors[name.replace("weight", "bias")] = torch.randn(len(tensors[name]), generator=generator) * 0.5
    return write_checkpoint(folder, CONFIG, tensors)


def _build_qwen2(config: Mapping[str, object], ctx: BuildContext) -> DiffusionModel:
    return build_decoder(_spec(config, qkv_bias=True), ctx)


QWEN2_CASE = Case(
    family=Family(build=_build_qwen2, weights=WeightRules(*STANDARD_DECODER)),
    write=_write_qwen2,
    oracle=lambda checkpoint: _oracle(Qwen2ForCausalLM, Qwen2Config, checkpoint),
    names=_standard_names(),
)
"""What Dream's checkpoints are: the oracle's own names, and biases on query, key and value."""


class Rows(nn.Module):
    """Some outputs of a packed layer, under the name of the layer that the oracle has for them."""

    def __init__(self, packed: Callable[[], nn.Module], start: int, length: int) -> None:
        super().__init__()
        self.packed, self.start, self.length = packed, start, length

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.packed()(x)
        return out[..., self.start : self.start + self.length]


def _write_packed(folder: Path) -> Checkpoint:
    tensors = standard_tensors(CONFIG, 2, qk_norm=False)
    stored = {}
    for name, tensor in tensors.items():
        if ".self_attn.o_proj." in name:
            stored[name.replace("self_attn.o_proj", "attention.dense")] = tensor
        elif ".self_attn.q_proj." in name:
            parts = [tensors[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
            stored[name.replace("self_attn.q_proj", "attention.query_key_value")] = torch.cat(parts)
        elif ".self_attn." not in name:
            stored[name] = tensor
    return write_checkpoint(folder, CONFIG, stored)


def _packed_oracle(checkpoint: Checkpoint) -> PreTrainedModel:
    apart = {}
    for name, tensor in checkpoint.tensors.items():
        if name.endswith("query_key_value.weight"):
            for part, rows in zip("qkv", tensor.split((32, 16, 16)), strict=True):
                apart[name.replace("attention.query_key_value", f"self_attn.{part}_proj")] = rows
        else:
            apart[name.replace("attention.dense", "self_attn.o_proj")] = tensor
    model = _oracle(LlamaForCausalLM, LlamaConfig, attrs.evolve(checkpoint, tensors=apart))
    for layer in range(2):
        attention = model.get_submodule(f"model.layers.{layer}.self_attn")
        packed = nn.Linear(32, 64, bias=False)
        packed.weight.data = checkpoint.tensors[f"model.layers.{layer}.attention.query_key_value.weight"]
        attention.add_module("query_key_value", packed)
        for part, start, length in (("q", 0, 32), ("k", 32, 16), ("v", 48, 16)):
            rows = Rows(lambda attention=attention: attention.get_submodule("query_key_value"), start, length)
            attention.set_submodule(f"{part}_proj", rows)
    return model


def _packed_names() -> dict[str, str]:
    names = {}
    for path in _standard_names():
        if path.endswith(".q_proj"):
            place = path.replace("q_proj", "query_key_value")
            names[place.replace("self_attn", "attention")] = place
        elif path.endswith(".o_proj"):
            names[path.replace("self_attn.o_proj", "attention.dense")] = path
        elif ".self_attn." not in path:
            names[path] = path
    return names


_PACKED_RULES = (
    Rename("model.layers.{i}.attention.query_key_value.weight", "layers.{i}.attn.qkv.weight"),
    Rename("model.layers.{i}.attention.dense.weight", "layers.{i}.attn.out.weight"),
)

PACKED_CASE = Case(
    family=Family(
        build=lambda config, ctx: build_decoder(_spec(config), ctx),
        weights=WeightRules(*STANDARD_DECODER, *_PACKED_RULES),
    ),
    write=_write_packed,
    oracle=_packed_oracle,
    names=_packed_names(),
)
"""LLaDA2's attention: query, key and value are stored as one tensor."""


def _build_experts(config: Mapping[str, object], ctx: BuildContext) -> DiffusionModel:
    experts = MoESpec(num_experts=4, experts_per_token=2, expert_size=24, router="softmax", renormalize=True)
    return build_decoder(_spec(config, moe=experts, sparse_layers=[1]), ctx)


EXPERTS_FAMILY = Family(build=_build_experts, weights=WeightRules(*STANDARD_DECODER, *STANDARD_EXPERTS))
"""The second layer has experts: stacked parameters, each part of which is one expert's matrix."""


def write_experts(folder: Path) -> Checkpoint:
    config = {**CONFIG, **EXPERTS}
    return write_checkpoint(folder, config, standard_tensors(config, 3, qk_norm=False))


CASES = {"llada": LLADA_CASE, "qwen2": QWEN2_CASE, "packed": PACKED_CASE}
