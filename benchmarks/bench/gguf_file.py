"""A checkpoint of the benchmark as the GGUF file that llama.cpp reads: the same weights under other names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

OUTER: Mapping[str, str] = MappingProxyType(
    {
        "model.transformer.wte.weight": "token_embd.weight",
        "model.transformer.ln_f.weight": "output_norm.weight",
        "model.transformer.ff_out.weight": "output.weight",
    }
)
OF_BLOCKS: Mapping[str, str] = MappingProxyType(
    {
        "attn_norm": "attn_norm",
        "q_proj": "attn_q",
        "k_proj": "attn_k",
        "v_proj": "attn_v",
        "attn_out": "attn_output",
        "ff_norm": "ffn_norm",
        "ff_proj": "ffn_gate",
        "up_proj": "ffn_up",
        "ff_out": "ffn_down",
    }
)
"""LLaDA's names -> llama.cpp's, of a block's tensors."""

PLAIN_CHAT = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
"""A chat template that adds nothing: the tool always applies one."""


def word(token: int) -> str:
    """The text of a token in these files; texts behind each other are read as their tokens."""
    return f"<|{token}|>"


def name_of(name: str) -> str:
    """llama.cpp's name of a tensor.

    Raises:
        KeyError: LLaDA has no such tensor.
    """
    if name in OUTER:
        return OUTER[name]
    block, kind = name.removeprefix("model.transformer.blocks.").removesuffix(".weight").split(".")
    return f"blk.{block}.{OF_BLOCKS[kind]}.weight"


def pairwise_rotated(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a query or key projection for a rotation of neighbours: LLaDA rotates the two halves of a head."""
    per_head = weight.view(heads, 2, -1, weight.shape[1])
    return per_head.transpose(1, 2).reshape(weight.shape).contiguous()


def write_gguf(folder: Path, config: Mapping[str, Any], dtype: str, path: Path) -> Path:
    """Write a checkpoint of `benchmarks.bench.networks` as GGUF, unless it is there; returns its path.

    Args:
        folder: of the checkpoint.
        config: its config.json.
        dtype: of the matrices, "float32" or "bfloat16"; norms are float32, as is usual in such files.
    """
    import gguf
    import torch
    from safetensors.torch import load_file

    if path.exists():
        return path
    partial = path.with_suffix(".part")
    writer = gguf.GGUFWriter(partial, "llada")
    heads, hidden, vocab = config["n_heads"], config["d_model"], config["vocab_size"]
    writer.add_context_length(config["max_sequence_length"])
    writer.add_embedding_length(hidden)
    writer.add_block_count(config["n_layers"])
    writer.add_feed_forward_length(config["mlp_hidden_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["n_kv_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_vocab_size(vocab)
    writer.add_causal_attention(False)
    writer.add_diffusion_shift_logits(False)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([word(token) for token in range(vocab)])
    writer.add_token_scores([0.0] * vocab)
    writer.add_token_types([gguf.TokenType.USER_DEFINED] * vocab)
    for add in (writer.add_bos_token_id, writer.add_eos_token_id, writer.add_unk_token_id):
        add(config["eos_token_id"])
    writer.add_mask_token_id(config["mask_token_id"])
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(PLAIN_CHAT)
    for name, tensor in load_file(str(folder / "model.safetensors")).items():
        if ".q_proj." in name or ".k_proj." in name:
            tensor = pairwise_rotated(tensor, heads)
        if dtype == "bfloat16" and tensor.dim() == 2:
            raw = tensor.to(torch.bfloat16).contiguous().view(torch.uint8).numpy()
            writer.add_tensor(name_of(name), raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            writer.add_tensor(name_of(name), tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(path)
    return path
