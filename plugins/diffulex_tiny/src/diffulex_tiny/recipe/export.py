"""Writing a trained network as a LLaDA checkpoint: config.json, model.safetensors, tokenizer, generation defaults."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from diffulex_tiny.recipe import tokenizer as vocabulary
from diffulex_tiny.recipe.folder import in_blocks, write_checkpoint

OUTER_NAMES = {
    "model.embed_tokens.weight": "model.transformer.wte.weight",
    "model.norm.weight": "model.transformer.ln_f.weight",
}
BLOCK_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ff_norm",
    "self_attn.q_proj": "q_proj",
    "self_attn.k_proj": "k_proj",
    "self_attn.v_proj": "v_proj",
    "self_attn.o_proj": "attn_out",
    "mlp.gate_proj": "ff_proj",
    "mlp.up_proj": "up_proj",
    "mlp.down_proj": "ff_out",
}


def export(network: LlamaForCausalLM, folder: Path) -> None:
    """Write the checkpoint into `folder`, weights in float32."""
    tokenizer = vocabulary.build_tokenizer()
    eos, mask = (vocabulary.token_id(tokenizer, token) for token in (vocabulary.EOS, vocabulary.MASK))
    config = network.config
    assert config.rope_parameters is not None
    described = {
        "model_type": "llada",
        "architectures": ["LLaDAModelLM"],
        "d_model": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "mlp_hidden_size": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "embedding_size": config.vocab_size,
        "max_sequence_length": config.max_position_embeddings,
        "rope": True,
        "alibi": False,
        "rope_theta": config.rope_parameters["rope_theta"],
        "rope_full_precision": True,
        "rms_norm_eps": config.rms_norm_eps,
        "layer_norm_type": "rms",
        "layer_norm_with_affine": True,
        "bias_for_layer_norm": False,
        "activation_type": "silu",
        "block_type": "llama",
        "block_group_size": 1,
        "attention_layer_norm": False,
        "include_bias": False,
        "include_qkv_bias": False,
        "weight_tying": True,
        "scale_logits": False,
        "input_emb_norm": False,
        "mask_token_id": mask,
        "eos_token_id": eos,
        "pad_token_id": eos,
    }
    write_checkpoint(
        folder,
        tensors={checkpoint_name(name): weight for name, weight in network.named_parameters()},
        config=described,
        generation=in_blocks("d2f", max_new_tokens=64, block_size=8),
        mask=vocabulary.MASK,
        dtype=torch.float32,
    )


def checkpoint_name(name: str) -> str:
    """Checkpoint name of a training tensor."""
    if name in OUTER_NAMES:
        return OUTER_NAMES[name]
    layer, _, rest = name.removeprefix("model.layers.").partition(".")
    module = rest.removesuffix(".weight")
    return f"model.transformer.blocks.{layer}.{BLOCK_NAMES[module]}.weight"
