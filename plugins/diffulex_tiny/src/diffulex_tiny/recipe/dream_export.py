"""Writing the trained network as a Dream checkpoint, whose names are Qwen2's."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Qwen2ForCausalLM

from diffulex_tiny.recipe import tokenizer as vocabulary
from diffulex_tiny.recipe.folder import in_blocks, write_checkpoint

MASK = "<|mask|>"
"""What the family calls its mask token."""


def export(network: Qwen2ForCausalLM, folder: Path) -> None:
    """Write the checkpoint into `folder`, weights in float32."""
    tokenizer = vocabulary.build_tokenizer()
    eos, mask = (vocabulary.token_id(tokenizer, token) for token in (vocabulary.EOS, vocabulary.MASK))
    config = network.config
    assert config.rope_parameters is not None
    described = {
        "model_type": "Dream",
        "architectures": ["DreamModel"],
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "hidden_act": "silu",
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_parameters["rope_theta"],
        "max_position_embeddings": config.max_position_embeddings,
        "tie_word_embeddings": False,
        "mask_token_id": mask,
        "eos_token_id": eos,
        "pad_token_id": eos,
    }
    write_checkpoint(
        folder,
        tensors=dict(network.named_parameters()),
        config=described,
        generation=in_blocks("d2f", max_new_tokens=128),
        mask=MASK,
        dtype=torch.float32,
    )
