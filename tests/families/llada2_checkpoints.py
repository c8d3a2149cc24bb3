"""Small random checkpoints with LLaDA2's tensor names, written out by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.families.standard_checkpoints import Draw


def llada2_tensors(config: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """fp32 tensors of a LLaDA2 config.json; gates and correction biases are random and the head is sharp."""
    draw = Draw(seed)
    width, head_dim = config["hidden_size"], config["head_dim"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    expert = config["moe_intermediate_size"]
    draw.table("model.word_embeddings", config["vocab_size"], width)
    for layer in range(config["num_hidden_layers"]):
        block = f"model.layers.{layer}"
        draw.norm(f"{block}.input_layernorm", width)
        rows = (heads + 2 * kv_heads) * head_dim
        draw.linear(f"{block}.attention.query_key_value", rows, width, bias=config.get("use_qkv_bias", False))
        if config.get("use_qk_norm", True):
            draw.norm(f"{block}.attention.query_layernorm", head_dim)
            draw.norm(f"{block}.attention.key_layernorm", head_dim)
        draw.linear(f"{block}.attention.dense", width, heads * head_dim, bias=config["use_bias"])
        draw.norm(f"{block}.post_attention_layernorm", width)
        if layer < config["first_k_dense_replace"]:
            _mlp(draw, f"{block}.mlp", width, config["intermediate_size"])
            continue
        draw.linear(f"{block}.mlp.gate", config["num_experts"], width, gain=2)
        if config["moe_router_enable_expert_bias"]:
            bias = torch.randn(config["num_experts"], generator=draw.generator) * 0.3
            draw.tensors[f"{block}.mlp.gate.expert_bias"] = bias
        for index in range(config["num_experts"]):
            _mlp(draw, f"{block}.mlp.experts.{index}", width, expert)
        if config["num_shared_experts"]:
            _mlp(draw, f"{block}.mlp.shared_experts", width, expert * config["num_shared_experts"])
    draw.norm("model.norm", width)
    if not config.get("tie_word_embeddings"):
        draw.linear("lm_head", config["vocab_size"], width, gain=4)
    return draw.tensors


def merged(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same checkpoint as the public converter writes it: experts stacked, in names without `.weight`."""
    made = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    for name in tensors:
        before, found, after = name.partition(".experts.0.")
        if found:
            each = [name.replace(".experts.0.", f".experts.{index}.") for index in range(len(tensors))]
            stacked = torch.stack([tensors[other] for other in each if other in tensors])
            made[f"{before}.experts.{after.removesuffix('.weight')}"] = stacked
    return made


def _mlp(draw: Draw, name: str, width: int, size: int) -> None:
    for part in ("gate", "up"):
        draw.linear(f"{name}.{part}_proj", size, width)
    draw.linear(f"{name}.down_proj", width, size)
