"""Independent networks from transformers' own classes, for comparison in tests.

Call them with an explicit 4-D attention mask: without one they are causal. Dream's logits are theirs as they are; that
row `i` predicts position `i + 1` is up to the caller.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

Model = TypeVar("Model", bound=PreTrainedModel)


def qwen2(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Qwen2ForCausalLM:
    """`Qwen2ForCausalLM` in fp32 with a Dream checkpoint's weights.

    Args:
        config: the parsed config.json.
        tensors: the checkpoint's tensors by their own names, which are Qwen2's.
    """
    return _loaded(Qwen2ForCausalLM(Qwen2Config(**_shape(config))), tensors)


def qwen3(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Qwen3ForCausalLM:
    """`Qwen3ForCausalLM` in fp32 with a DreamReasoner checkpoint's weights; arguments as for `qwen2`."""
    return _loaded(Qwen3ForCausalLM(Qwen3Config(**_shape(config), attention_bias=False)), tensors)


def _shape(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "vocab_size": config["vocab_size"],
        "hidden_size": config["hidden_size"],
        "intermediate_size": config["intermediate_size"],
        "num_hidden_layers": config["num_hidden_layers"],
        "num_attention_heads": config["num_attention_heads"],
        "num_key_value_heads": config["num_key_value_heads"],
        "head_dim": config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
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
