"""Small random checkpoints in a family's real layout, written into a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

MASK, EOS, EOT = "<|mdm_mask|>", "<|endoftext|>", "<|eot_id|>"
EOS_ID, MASK_ID, EOT_ID = 256, 257, 258
VOCAB_SIZE = 259


@attrs.frozen(kw_only=True, eq=False)
class Checkpoint:
    """What was written: the folder, its config.json and the tensors by checkpoint name."""

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def write_llada_checkpoint(
    folder: Path, seed: int = 0, *, files: int = 1, dtype: torch.dtype = torch.float32, **config: Any
) -> Checkpoint:
    """Write config.json, weights and a byte-level tokenizer: 2 layers of 4 query and 2 key/value heads by default.

    Args:
        folder: created when needed.
        seed: of the random weights; norms and biases are random too, so that none is an identity.
        files: number of safetensors files; more than one come with an index.
        dtype: of the tensors.
        config: keys of config.json to set.
    """
    full = llada_config(**config)
    tensors = {name: tensor.to(dtype) for name, tensor in llada_tensors(full, seed).items()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(full, indent=1))
    write_weights(folder, tensors, files)
    write_tokenizer(folder)
    return Checkpoint(folder=folder, config=full, tensors=tensors)


def llada_config(**changes: Any) -> dict[str, Any]:
    """A config.json as the published ones are written, small; None removes nothing, it stands for null."""
    return {
        "model_type": "llada", "architectures": ["LLaDAModelLM"], "d_model": 32, "n_layers": 2, "n_heads": 4,
        "n_kv_heads": 2, "mlp_ratio": 4, "mlp_hidden_size": 48, "activation_type": "silu", "block_type": "llama",
        "block_group_size": 1, "alibi": False, "rope": True, "rope_full_precision": True, "rope_theta": 10000.0,
        "multi_query_attention": None, "attention_layer_norm": False, "layer_norm_type": "rms",
        "layer_norm_with_affine": True, "rms_norm_eps": 1e-5, "bias_for_layer_norm": False, "include_bias": False,
        "include_qkv_bias": False, "scale_logits": False, "input_emb_norm": False, "weight_tying": False,
        "max_sequence_length": 512, "vocab_size": VOCAB_SIZE, "embedding_size": VOCAB_SIZE, "mask_token_id": MASK_ID,
        "eos_token_id": EOS_ID, "pad_token_id": EOS_ID, **changes,
    }  # fmt: skip


def llada_tensors(config: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """Random fp32 tensors for a LLaDA config.json; the head is sharp, so that confidences spread over (0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    width, heads = config["d_model"], config["n_heads"]
    kv_width = width // heads * (config["n_kv_heads"] or (1 if config["multi_query_attention"] else heads))
    ffn = config["mlp_hidden_size"] or config["mlp_ratio"] * width
    rows = config["embedding_size"] or config["vocab_size"]
    bias = config["include_bias"]
    tensors: dict[str, Tensor] = {}

    def linear(name: str, out_features: int, in_features: int, *, bias: bool) -> None:
        tensors[f"{name}.weight"] = torch.randn(out_features, in_features, generator=generator) * in_features**-0.5
        if bias:
            tensors[f"{name}.bias"] = torch.randn(out_features, generator=generator) * 0.5

    def norm(name: str) -> None:
        tensors[f"{name}.weight"] = 1 + torch.randn(width, generator=generator) * 0.2

    tensors["model.transformer.wte.weight"] = torch.randn(rows, width, generator=generator)
    for layer in range(config["n_layers"]):
        block = f"model.transformer.blocks.{layer}"
        norm(f"{block}.attn_norm")
        for part, out_features in (("q", width), ("k", kv_width), ("v", kv_width)):
            linear(f"{block}.{part}_proj", out_features, width, bias=bias or config["include_qkv_bias"])
        linear(f"{block}.attn_out", width, width, bias=bias)
        norm(f"{block}.ff_norm")
        linear(f"{block}.ff_proj", ffn, width, bias=bias)
        linear(f"{block}.up_proj", ffn, width, bias=bias)
        linear(f"{block}.ff_out", width, ffn, bias=bias)
    norm("model.transformer.ln_f")
    if not config["weight_tying"]:
        linear("model.transformer.ff_out", rows, width, bias=bias)
        tensors["model.transformer.ff_out.weight"] *= 4
    return tensors


def write_weights(folder: Path, tensors: Mapping[str, Tensor], files: int = 1) -> None:
    """One `model.safetensors`, or several files with their index."""
    if files == 1:
        save_file(dict(tensors), folder / "model.safetensors")
        return
    weight_map = {}
    for index in range(files):
        name = f"model-{index + 1:05d}-of-{files:05d}.safetensors"
        part = {key: tensor for place, (key, tensor) in enumerate(tensors.items()) if place % files == index}
        save_file(part, folder / name)
        weight_map.update(dict.fromkeys(part, name))
    index_file = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index_file))


def write_tokenizer(folder: Path) -> None:
    """A tokenizer with one token for each byte and the special tokens `EOS`, `MASK` and `EOT`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (EOS, MASK, EOT)])
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"eos_token": EOS, "pad_token": EOS, "mask_token": MASK}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
