"""Independent networks from transformers' own classes, for comparison in tests.

Call them with an explicit 4-D attention mask: without one they are causal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

Model = TypeVar("Model", bound=PreTrainedModel)


def qwen3(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Qwen3ForCausalLM:
    """`Qwen3ForCausalLM` in fp32 with an SDAR checkpoint's weights.

    Args:
        config: the parsed config.json.
        tensors: the checkpoint's tensors by their own names, which are Qwen3's.
    """
    model = Qwen3ForCausalLM(Qwen3Config(**_shape(config, config["head_dim"])))
    return _loaded(model, tensors)


def qwen3_moe(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Qwen3MoeForCausalLM:
    """`Qwen3MoeForCausalLM` in fp32 with an SDAR-MoE checkpoint's weights, one tensor for each expert."""
    model = Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            **_shape(config, config["head_dim"]),
            num_experts=config["num_experts"],
            num_experts_per_tok=config["num_experts_per_tok"],
            moe_intermediate_size=config["moe_intermediate_size"],
            norm_topk_prob=config["norm_topk_prob"],  # its own default is False
            decoder_sparse_step=config.get("decoder_sparse_step", 1),
            mlp_only_layers=config.get("mlp_only_layers", []),
        )
    )
    # In memory transformers stacks the experts, gate rows before up rows.
    stacked = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    for layer in {name.partition(".experts.")[0] for name in tensors if ".experts." in name}:
        parts = {
            part: torch.stack([
                tensors[f"{layer}.experts.{expert}.{part}_proj.weight"] for expert in range(config["num_experts"])
            ])
            for part in ("gate", "up", "down")
        }  # fmt: skip
        stacked[f"{layer}.experts.gate_up_proj"] = torch.cat((parts["gate"], parts["up"]), dim=1)
        stacked[f"{layer}.experts.down_proj"] = parts["down"]
    return _loaded(model, stacked)


def llama(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> LlamaForCausalLM:
    """`LlamaForCausalLM` in fp32 with a Stable-DiffCoder checkpoint's weights; arguments as for `qwen3`."""
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    model = LlamaForCausalLM(LlamaConfig(**_shape(config, width), mlp_bias=False))
    return _loaded(model, tensors)


def _shape(config: Mapping[str, Any], head_dim: int) -> dict[str, Any]:
    return {
        "head_dim": head_dim,
        "attention_bias": False,
        "vocab_size": config["vocab_size"],
        "hidden_size": config["hidden_size"],
        "intermediate_size": config["intermediate_size"],
        "num_hidden_layers": config["num_hidden_layers"],
        "num_attention_heads": config["num_attention_heads"],
        "num_key_value_heads": config["num_key_value_heads"],
        "rms_norm_eps": config["rms_norm_eps"],
        "rope_parameters": {"rope_type": "default", "rope_theta": config["rope_theta"]},
        "tie_word_embeddings": bool(config.get("tie_word_embeddings")),
        "max_position_embeddings": config["max_position_embeddings"],
        "hidden_act": "silu",
    }


def _loaded(model: Model, tensors: Mapping[str, Tensor]) -> Model:
    model.set_attn_implementation("eager")
    weights = {name: tensor.to(torch.float32) for name, tensor in tensors.items()}
    if model.config.tie_word_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights)
    model.train(False)
    return model
