"""Writing the trained network as a DiffusionGemma checkpoint: the decoder's copy of what encoder and decoder share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from diffulex_tiny.recipe import tokenizer as vocabulary
from diffulex_tiny.recipe.easing import EasedNorm
from diffulex_tiny.recipe.folder import write_checkpoint
from diffulex_tiny.recipe.gemma_network import GemmaNetwork, Shape

DECODER, ENCODER = "model.decoder.", "model.encoder.language_model."

GENERATION = {
    "max_denoising_steps": 48,
    "t_min": 0.4,
    "t_max": 0.8,
    "stability_threshold": 1,
    "confidence_threshold": 0.05,
    "sampler_config": {"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": 0.1},
    "max_new_tokens": 128,
}
"""Decoding defaults that the checkpoint recommends: those of the published sampler, but for the threshold, 0.005 there.
A higher one loses nothing here and spends a third of the forwards. transformers refuses names that are not its own."""


def export(network: GemmaNetwork, folder: Path) -> None:
    """Write the checkpoint into `folder`, weights in bfloat16."""
    write_checkpoint(
        folder,
        tensors=dict(_tensors(network)),
        config=described(network.shape),
        generation=GENERATION,
        mask=None,
        dtype=torch.bfloat16,
    )


def described(shape: Shape) -> dict[str, object]:
    """config.json, without what concerns pictures."""
    eos = vocabulary.token_id(vocabulary.build_tokenizer(), vocabulary.EOS)
    text: dict[str, object] = {
        "model_type": "diffusion_gemma_text",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_hidden_layers,
        "num_attention_heads": shape.num_attention_heads,
        "num_key_value_heads": shape.num_key_value_heads,
        "num_global_key_value_heads": shape.num_global_key_value_heads,
        "head_dim": shape.head_dim,
        "global_head_dim": shape.global_head_dim,
        "layer_types": [*["sliding_attention"] * (shape.num_hidden_layers - 1), "full_attention"],
        "sliding_window": shape.sliding_window,
        "num_experts": shape.num_experts,
        "top_k_experts": shape.top_k_experts,
        "moe_intermediate_size": shape.moe_intermediate_size,
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "final_logit_softcapping": shape.final_logit_softcapping,
        "rms_norm_eps": shape.rms_norm_eps,
        "max_position_embeddings": shape.max_position_embeddings,
        "use_bidirectional_attention": None,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": shape.rope_theta},
            "full_attention": {
                "rope_type": "proportional",
                "rope_theta": shape.rope_theta,
                "partial_rotary_factor": shape.global_rope_share,
            },
        },
        "tie_word_embeddings": True,
        "eos_token_id": eos,
        "bos_token_id": eos,
        "pad_token_id": eos,
    }
    return {
        "model_type": "diffusion_gemma",
        "architectures": ["DiffusionGemmaForBlockDiffusion"],
        "canvas_length": shape.canvas_length,
        "tie_word_embeddings": True,
        "eos_token_id": eos,
        "text_config": text,
    }


def _tensors(network: GemmaNetwork) -> Iterator[tuple[str, Tensor]]:
    """The published tensors. What the eased norm of values keeps besides size 1, the norm behind attention undoes."""
    assert float(network.self_conditioning.post_norm.usual) == 1, "rows of a canvas enter at root mean square 1"
    for name, weight in network.named_parameters():
        path, _, kind = name.rpartition(".")
        module = network.get_submodule(path)
        if kind in ("encoder_scalar", "decoder_scalar"):
            yield f"{ENCODER if kind == 'encoder_scalar' else DECODER}{path}.layer_scalar", weight
        elif isinstance(module, EasedNorm):
            yield DECODER + name, module.final_weight()
        else:
            yield DECODER + name, weight
