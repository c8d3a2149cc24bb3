"""An independent LLaDA from transformers' own classes, for comparison in tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

_BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "ff_norm": "post_attention_layernorm",
    "ff_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj",
}
_TOP_NAMES = {"wte": "model.embed_tokens", "ln_f": "model.norm", "ff_out": "lm_head"}


def hf_reference(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> LlamaForCausalLM:
    """`LlamaForCausalLM` in fp32 with a LLaDA checkpoint's weights; call it with an explicit 4-D attention mask.

    Args:
        config: the parsed config.json.
        tensors: the checkpoint's tensors by their own names; without a head bias, which Llama cannot have.
    """
    default_kv_heads = 1 if config.get("multi_query_attention") else config["n_heads"]
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.get("embedding_size") or config["vocab_size"],
            hidden_size=config["d_model"],
            intermediate_size=config.get("mlp_hidden_size") or config.get("mlp_ratio", 4) * config["d_model"],
            num_hidden_layers=config["n_layers"],
            num_attention_heads=config["n_heads"],
            num_key_value_heads=config.get("n_kv_heads") or default_kv_heads,
            rms_norm_eps=config["rms_norm_eps"],
            rope_parameters={"rope_type": "default", "rope_theta": config["rope_theta"]},
            attention_bias=bool(config.get("include_qkv_bias") or config.get("include_bias")),
            mlp_bias=bool(config.get("include_bias")),
            tie_word_embeddings=config["weight_tying"],
            max_position_embeddings=config["max_sequence_length"],
            hidden_act="silu",
        )
    )
    model.set_attn_implementation("eager")
    # A model without some of the biases that Llama has together leaves those at zero.
    weights = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items() if name.endswith(".bias")}
    weights.update({_llama_name(name): tensor.float() for name, tensor in tensors.items()})
    if config["weight_tying"]:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights)
    model.eval()
    return model


def _llama_name(name: str) -> str:
    path, _, kind = name.removeprefix("model.transformer.").rpartition(".")
    if not path.startswith("blocks."):
        return f"{_TOP_NAMES[path]}.{kind}"
    _, layer, leaf = path.split(".")
    return f"model.layers.{layer}.{_BLOCK_NAMES[leaf]}.{kind}"
