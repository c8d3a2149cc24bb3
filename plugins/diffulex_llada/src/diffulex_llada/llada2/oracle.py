"""An independent LLaDA2 from transformers' own classes, for comparison in tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import Glm4MoeConfig, Glm4MoeForCausalLM

_LAYER_NAMES = {
    "attention.dense": "self_attn.o_proj",
    "attention.query_layernorm": "self_attn.q_norm",
    "attention.key_layernorm": "self_attn.k_norm",
}
_TOP_NAMES = {"model.word_embeddings.weight": "model.embed_tokens.weight"}


def hf_reference(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Glm4MoeForCausalLM:
    """`Glm4MoeForCausalLM` in fp32 with a LLaDA2 checkpoint's weights; call it with an explicit 4-D attention mask.

    Args:
        config: the parsed config.json, without `use_bias` (GLM has no bias there), with at least one group.
        tensors: the checkpoint's tensors by their own names, one for each expert.
    """
    values: dict[str, Any] = {
        "vocab_size": config["vocab_size"],
        "hidden_size": config["hidden_size"],
        "intermediate_size": config["intermediate_size"],
        "num_hidden_layers": config["num_hidden_layers"],
        "num_attention_heads": config["num_attention_heads"],
        "num_key_value_heads": config["num_key_value_heads"],
        "head_dim": config["head_dim"],
        "use_qk_norm": config.get("use_qk_norm", True),
        "attention_bias": config.get("use_qkv_bias", False),
        "n_routed_experts": config["num_experts"],
        "num_experts_per_tok": config["num_experts_per_tok"],
        "moe_intermediate_size": config["moe_intermediate_size"],
        "n_shared_experts": config["num_shared_experts"],
        "n_group": config["n_group"],
        "topk_group": config["topk_group"],
        "routed_scaling_factor": config["routed_scaling_factor"],
        "norm_topk_prob": config["norm_topk_prob"],
        "first_k_dense_replace": config["first_k_dense_replace"],
        "rms_norm_eps": config["rms_norm_eps"],
        "tie_word_embeddings": config.get("tie_word_embeddings", False),
        "max_position_embeddings": config["max_position_embeddings"],
        "hidden_act": "silu",
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": config["rope_theta"],
            "partial_rotary_factor": config["partial_rotary_factor"],
        },
    }
    model = Glm4MoeForCausalLM(Glm4MoeConfig(**values))
    model.set_attn_implementation("eager")
    # A router without correction bias is one whose bias is zero.
    weights = {name: torch.zeros_like(t) for name, t in model.state_dict().items() if name.endswith("correction_bias")}
    weights |= {name: tensor.float() for stored in tensors for name, tensor in _glm(stored, tensors, config)}
    if config.get("tie_word_embeddings", False):
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights)
    model.eval()
    return model


def _glm(name: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """GLM's name and value for one tensor; the first expert's stand for all experts of a layer."""
    if not name.startswith("model.layers."):
        yield _TOP_NAMES.get(name, name), tensors[name]
        return
    _, _, layer, leaf = name.split(".", 3)
    head = f"model.layers.{layer}"
    path, _, kind = leaf.rpartition(".")
    if path == "attention.query_key_value":
        width, kv_width = (config["head_dim"] * config[f"num_{part}_heads"] for part in ("attention", "key_value"))
        for part, rows in zip("qkv", tensors[name].split([width, kv_width, kv_width]), strict=True):
            yield f"{head}.self_attn.{part}_proj.{kind}", rows
    elif path.startswith("mlp.experts."):
        if path == "mlp.experts.0.down_proj":
            gate, up, down = (
                torch.stack(
                    [tensors[f"{head}.mlp.experts.{e}.{part}_proj.weight"] for e in range(config["num_experts"])]
                )
                for part in ("gate", "up", "down")
            )
            yield f"{head}.mlp.experts.gate_up_proj", torch.cat((gate, up), dim=1)
            yield f"{head}.mlp.experts.down_proj", down
    elif leaf in ("mlp.gate.expert_bias", "mlp.gate.e_score_correction_bias"):
        yield f"{head}.mlp.gate.e_score_correction_bias", tensors[name]
    else:
        yield f"{head}.{_LAYER_NAMES.get(path, path)}.{kind}", tensors[name]
