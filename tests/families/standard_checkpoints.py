"""Small random checkpoints with the tensor names of Llama and Qwen, written out by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.core.checkpoints import Checkpoint, write_tokenizer, write_weights


class Draw:
    """Random tensors by name; norms, biases and scales are random too, so that none is an identity."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.tensors: dict[str, Tensor] = {}

    def linear(self, name: str, out_features: int, in_features: int, *, bias: bool = False, gain: float = 1.0) -> None:
        drawn = torch.randn(out_features, in_features, generator=self.generator)
        self.tensors[f"{name}.weight"] = drawn * gain * in_features**-0.5
        if bias:
            self.tensors[f"{name}.bias"] = torch.randn(out_features, generator=self.generator) * 0.5

    def norm(self, name: str, width: int) -> None:
        self.tensors[f"{name}.weight"] = 1 + torch.randn(width, generator=self.generator) * 0.2

    def table(self, name: str, rows: int, width: int) -> None:
        self.tensors[f"{name}.weight"] = torch.randn(rows, width, generator=self.generator)


def standard_tensors(
    config: Mapping[str, Any], seed: int, *, qk_norm: bool = False, qkv_bias: bool = False
) -> dict[str, Tensor]:
    """fp32 tensors of a Llama (with `qk_norm` a Qwen3, with `qkv_bias` a Qwen2) config.json; the head is sharp.

    A config.json with `num_experts` gives each layer a router and experts in place of the MLP, but for the layers that
    `mlp_only_layers` and `decoder_sparse_step` leave dense.
    """
    draw = Draw(seed)
    width, heads = config["hidden_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim") or width // heads
    kv_width = config["num_key_value_heads"] * head_dim
    draw.table("model.embed_tokens", config["vocab_size"], width)
    for layer in range(config["num_hidden_layers"]):
        block = f"model.layers.{layer}"
        draw.norm(f"{block}.input_layernorm", width)
        for part, rows in (("q", heads * head_dim), ("k", kv_width), ("v", kv_width)):
            draw.linear(f"{block}.self_attn.{part}_proj", rows, width, bias=qkv_bias)
        draw.linear(f"{block}.self_attn.o_proj", width, heads * head_dim)
        if qk_norm:
            draw.norm(f"{block}.self_attn.q_norm", head_dim)
            draw.norm(f"{block}.self_attn.k_norm", head_dim)
        draw.norm(f"{block}.post_attention_layernorm", width)
        if is_sparse(config, layer):
            draw.linear(f"{block}.mlp.gate", config["num_experts"], width, gain=2)
            for expert in range(config["num_experts"]):
                _mlp(draw, f"{block}.mlp.experts.{expert}", width, config["moe_intermediate_size"])
        else:
            _mlp(draw, f"{block}.mlp", width, config["intermediate_size"])
    draw.norm("model.norm", width)
    if not config.get("tie_word_embeddings"):
        draw.linear("lm_head", config["vocab_size"], width, gain=4)
    return draw.tensors


def is_sparse(config: Mapping[str, Any], layer: int) -> bool:
    """Whether a layer of a config.json has experts, as Qwen3-MoE's rule says."""
    every = config.get("decoder_sparse_step", 1)
    return bool(config.get("num_experts")) and layer not in config["mlp_only_layers"] and (layer + 1) % every == 0


def write_checkpoint(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    files: int = 1,
    dtype: torch.dtype = torch.float32,
) -> Checkpoint:
    """Write config.json, weights and a byte-level tokenizer of 259 tokens; `files` as for `write_weights`."""
    stored = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(config), indent=1))
    write_weights(folder, stored, files)
    write_tokenizer(folder)
    return Checkpoint(folder=folder, config=config, tensors=stored)


def _mlp(draw: Draw, name: str, width: int, ffn: int) -> None:
    for part in ("gate", "up"):
        draw.linear(f"{name}.{part}_proj", ffn, width)
    draw.linear(f"{name}.down_proj", width, ffn)
