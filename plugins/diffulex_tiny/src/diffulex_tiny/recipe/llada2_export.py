"""Writing the trained mixture of experts as a LLaDA2 checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import Glm4MoeForCausalLM

from diffulex_tiny.recipe import tokenizer as vocabulary
from diffulex_tiny.recipe.easing import EasedNorm
from diffulex_tiny.recipe.folder import in_blocks, write_checkpoint

MASK = "<|mask|>"
"""What the family calls its mask token."""

_NAMES = {
    "self_attn.o_proj": "attention.dense",
    "self_attn.q_norm": "attention.query_layernorm",
    "self_attn.k_norm": "attention.key_layernorm",
}


def export(network: Glm4MoeForCausalLM, folder: Path) -> None:
    """Write the checkpoint into `folder`, weights in bfloat16."""
    tokenizer = vocabulary.build_tokenizer()
    eos, mask = (vocabulary.token_id(tokenizer, token) for token in (vocabulary.EOS, vocabulary.MASK))
    config = network.config
    rope = config.rope_parameters
    assert rope is not None
    described = {
        "model_type": "llada2_moe",
        "architectures": ["LLaDA2MoeModelLM"],
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.hidden_size // config.num_attention_heads,
        "hidden_act": "silu",
        "use_qkv_bias": False,
        "use_bias": False,
        "use_qk_norm": True,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": rope["rope_theta"],
        "partial_rotary_factor": rope["partial_rotary_factor"],
        "max_position_embeddings": config.max_position_embeddings,
        "num_experts": config.n_routed_experts,
        "num_experts_per_tok": config.num_experts_per_tok,
        "moe_intermediate_size": config.moe_intermediate_size,
        "num_shared_experts": config.n_shared_experts,
        "n_group": config.n_group,
        "topk_group": config.topk_group,
        "first_k_dense_replace": config.first_k_dense_replace,
        "score_function": "sigmoid",
        "moe_router_enable_expert_bias": True,
        "norm_topk_prob": config.norm_topk_prob,
        "routed_scaling_factor": config.routed_scaling_factor,
        "router_dtype": "fp32",
        "tie_word_embeddings": False,
        "mask_token_id": mask,
        "eos_token_id": eos,
        "pad_token_id": eos,
    }
    write_checkpoint(
        folder,
        tensors=dict(_tensors(network)),
        config=described,
        generation=in_blocks("dmax", max_new_tokens=128, block_size=32, buffer_size=2, page_size=32),
        mask=MASK,
        dtype=torch.bfloat16,
    )


def _tensors(network: Glm4MoeForCausalLM) -> Iterator[tuple[str, Tensor]]:
    yield "model.word_embeddings.weight", network.get_parameter("model.embed_tokens.weight")
    yield "model.norm.weight", network.get_parameter("model.norm.weight")
    yield "lm_head.weight", network.get_parameter("lm_head.weight")
    for index, layer in enumerate(network.model.layers):
        for name, tensor in _layer_tensors(layer):
            yield f"model.layers.{index}.{name}", tensor


def _layer_tensors(layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    parts: list[Tensor] = [layer.get_parameter(f"self_attn.{part}_proj.weight") for part in "qkv"]
    yield "attention.query_key_value.weight", torch.cat(parts)
    for name, weight in layer.named_parameters():
        path, _, kind = name.rpartition(".")
        module = layer.get_submodule(path)
        if isinstance(module, EasedNorm):
            yield f"{_NAMES[path]}.weight", module.final_weight()
        elif name == "mlp.experts.gate_up_proj":
            for expert, stacked in enumerate(weight):
                gate, up = stacked.chunk(2)
                yield f"{path}.{expert}.gate_proj.weight", gate
                yield f"{path}.{expert}.up_proj.weight", up
        elif name == "mlp.experts.down_proj":
            for expert, down in enumerate(weight):
                yield f"{path}.{expert}.down_proj.weight", down
        elif path not in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
            yield f"{_NAMES.get(path, path)}.{kind}", weight
    for name, bias in layer.named_buffers():
        if name == "mlp.gate.e_score_correction_bias":
            yield "mlp.gate.expert_bias", bias
