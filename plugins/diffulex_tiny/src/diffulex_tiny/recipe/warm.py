"""What the other checkpoints start from: the network of tiny/llada, which knows the numbers and how to add them."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaForCausalLM

from diffulex_tiny.recipe.export import checkpoint_name
from diffulex_tiny.recipe.train import Recipe, build_network


@torch.no_grad()
def teacher(tokenizer: Tokenizer) -> LlamaForCausalLM:
    """tiny/llada as its training network."""
    network = build_network(Recipe(), tokenizer)
    stored = load_file(Path(str(files("diffulex_tiny"))) / "checkpoints/llada/model.safetensors")
    for name, parameter in network.named_parameters():
        parameter.copy_(stored[checkpoint_name(name)])
    return network


def varied(weight: Tensor, like: Tensor) -> Tensor:
    """Copies of a weight for all experts, `like` theirs, each a little different so that they can part."""
    return weight * (1 + 0.02 * torch.randn(like.shape))
