"""Random LLaDA checkpoints of the benchmark's sizes, written once, so that every contender loads the same weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import attrs

SPECIAL = 2
"""Ids at the end of a vocabulary: the end token and the mask."""


@attrs.frozen(kw_only=True)
class Network:
    """The shape of a dense LLaDA: rotary, RMS norms, a gated MLP, no biases, an untied head."""

    name: str
    hidden: int
    layers: int
    heads: int
    ffn: int
    vocab: int

    @property
    def mask(self) -> int:
        """Id of the mask token."""
        return self.vocab - 1

    @property
    def body(self) -> int:
        """Weights of the matrices that every row goes through."""
        return self.layers * (4 * self.hidden**2 + 3 * self.hidden * self.ffn)

    @property
    def head(self) -> int:
        """Weights of the head."""
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        """All weights."""
        return self.body + 2 * self.head + (2 * self.layers + 1) * self.hidden

    @property
    def config(self) -> dict[str, Any]:
        """The config.json of a LLaDA."""
        return {
            "architectures": ["LLaDAModelLM"], "model_type": "llada", "vocab_size": self.vocab,
            "embedding_size": self.vocab, "d_model": self.hidden, "n_layers": self.layers, "n_heads": self.heads,
            "n_kv_heads": self.heads, "mlp_hidden_size": self.ffn, "max_sequence_length": 4096, "rope": True,
            "rope_theta": 10000.0, "rms_norm_eps": 1e-5, "layer_norm_type": "rms", "block_type": "llama",
            "activation_type": "silu", "weight_tying": False, "mask_token_id": self.mask,
            "eos_token_id": self.vocab - 2, "pad_token_id": self.vocab - 2, "torch_dtype": "float32",
        }  # fmt: skip


NETWORKS: Mapping[str, Network] = MappingProxyType(
    {
        each.name: each
        for each in (
            Network(name="smoke", hidden=64, layers=2, heads=2, ffn=128, vocab=512),
            Network(name="35M", hidden=512, layers=8, heads=8, ffn=1536, vocab=8192),
            Network(name="60M", hidden=512, layers=8, heads=8, ffn=1536, vocab=32000),
            Network(name="150M", hidden=768, layers=12, heads=12, ffn=2560, vocab=32768),
        )
    }
)
"""By name. 60M is the shape that the project's targets were set on; smoke is for tests."""


def write_network(network: Network, folder: Path, *, seed: int = 0) -> Path:
    """Write a checkpoint in fp32 and a tokenizer, unless they are there; returns their folder.

    Matrices have the variance 1 / inputs. Queries, keys and the head are larger, so that rows of masks differ from one
    another and the most probable token stands out, as on a trained network. The end token and the mask are never the
    most probable: where the mask is, the authors' loop decides nothing in a step.
    """
    import torch
    from safetensors.torch import save_file

    folder = folder / f"{network.name}-{seed}"
    if (folder / "model.safetensors").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)

    def matrix(outputs: int, inputs: int, gain: float = 1.0) -> torch.Tensor:
        return torch.randn(outputs, inputs, generator=generator) * (gain * inputs**-0.5)

    hidden, tensors = network.hidden, dict[str, torch.Tensor]()
    tensors["model.transformer.wte.weight"] = torch.randn(network.vocab, hidden, generator=generator)
    for layer in range(network.layers):
        at = f"model.transformer.blocks.{layer}"
        for name in ("q_proj", "k_proj"):
            tensors[f"{at}.{name}.weight"] = matrix(hidden, hidden, 2.0)
        for name in ("v_proj", "attn_out"):
            tensors[f"{at}.{name}.weight"] = matrix(hidden, hidden)
        for name in ("ff_proj", "up_proj"):
            tensors[f"{at}.{name}.weight"] = matrix(network.ffn, hidden)
        tensors[f"{at}.ff_out.weight"] = matrix(hidden, network.ffn)
        for name in ("attn_norm", "ff_norm"):
            tensors[f"{at}.{name}.weight"] = torch.ones(hidden)
    tensors["model.transformer.ln_f.weight"] = torch.ones(hidden)
    tensors["model.transformer.ff_out.weight"] = matrix(network.vocab, hidden, 3.0)
    tensors["model.transformer.ff_out.weight"][-SPECIAL:] = 0
    (folder / "config.json").write_text(json.dumps(network.config))
    write_words(folder, network.vocab, {"eos_token": network.vocab - 2, "mask_token": network.mask})
    partial = folder / "model.safetensors.part"
    save_file(tensors, str(partial))
    partial.rename(folder / "model.safetensors")
    return folder


def prompts(network: Network, *, length: int, count: int, seed: int = 1) -> list[list[int]]:
    """Random ids, none of them special."""
    import numpy as np

    numbers = np.random.default_rng((seed, length))
    return numbers.integers(0, network.vocab - SPECIAL, (count, length)).tolist()


def write_words(folder: Path, vocabulary: int, special: Mapping[str, int]) -> None:
    """Write a tokenizer that has a word for each id; `special` says which ids are, say, the "eos_token"."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    names = {kind: _NAMES.get(kind, f"<|{kind}|>") for kind in special}
    words = {f"t{token}": token for token in range(vocabulary) if token not in special.values()}
    words |= {names[kind]: token for kind, token in special.items()}
    tokenizer = Tokenizer(models.WordLevel(vocab=words, unk_token=min(words, key=words.__getitem__)))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([*names.values()])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


_NAMES = {"mask_token": "<|mdm_mask|>"}
"""What a family expects its token to be called."""
