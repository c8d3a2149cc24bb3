"""Writing a checkpoint folder: config.json, model.safetensors, tokenizer, decoding defaults."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from diffulex_tiny.recipe import tokenizer as vocabulary


def in_blocks(
    strategy: str, *, max_new_tokens: int, block_size: int = 4, buffer_size: int = 4, page_size: int = 16
) -> dict[str, object]:
    """Decoding defaults of a checkpoint that decides running blocks."""
    return {
        "decoding_strategy": strategy,
        "block_size": block_size,
        "buffer_size": buffer_size,
        "page_size": page_size,
        "accept_threshold": 0.9,
        "temperature": 0.0,
        "max_new_tokens": max_new_tokens,
    }


def write_checkpoint(
    folder: Path,
    *,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, object],
    generation: Mapping[str, object],
    mask: str | None,
    dtype: torch.dtype,
) -> None:
    """Write everything but the card.

    Args:
        tensors: by their names in the checkpoint; written as `dtype`, and so says config.json.
        config: config.json, but for its dtype.
        generation: decoding defaults that the checkpoint recommends.
        mask: text of the mask token; None = the family has none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary.write_tokenizer(folder, mask)
    eos = vocabulary.token_id(vocabulary.build_tokenizer(), vocabulary.EOS)
    stored = {name: tensor.detach().to(dtype).contiguous() for name, tensor in tensors.items()}
    save_file(stored, str(folder / "model.safetensors"), metadata={"format": "pt"})
    _write(folder / "config.json", {**config, "torch_dtype": str(dtype).removeprefix("torch.")})
    _write(folder / "generation_config.json", {"eos_token_id": eos, "pad_token_id": eos, **generation})


def _write(path: Path, values: Mapping[str, object]) -> None:
    path.write_text(json.dumps(values, indent=1) + "\n")
