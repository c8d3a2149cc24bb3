"""An independent network from transformers' own Qwen2, for comparison in tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM


def hf_reference(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Qwen2ForCausalLM:
    """`Qwen2ForCausalLM` in fp32 with a Fast-dLLM v2 checkpoint's weights.

    Call it with an explicit 4-D attention mask, without one it is causal. That row `i` predicts position `i + 1` is up
    to the caller.

    Args:
        config: the parsed config.json.
        tensors: the checkpoint's tensors by their own names, which are Qwen2's.
    """
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=config["vocab_size"],
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            num_hidden_layers=config["num_hidden_layers"],
            num_attention_heads=config["num_attention_heads"],
            num_key_value_heads=config["num_key_value_heads"],
            rms_norm_eps=config["rms_norm_eps"],
            rope_parameters={"rope_type": "default", "rope_theta": config["rope_theta"]},
            tie_word_embeddings=config["tie_word_embeddings"],
            max_position_embeddings=config["max_position_embeddings"],
            hidden_act="silu",
        )
    )
    model.set_attn_implementation("eager")
    weights = {name: tensor.to(torch.float32) for name, tensor in tensors.items()}
    if config["tie_word_embeddings"]:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights)
    model.train(False)
    return model
