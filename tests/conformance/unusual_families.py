"""Families that are right and unlike the kit's: without an end of text, with other names, with another embedding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from diffulex_core.context import BuildContext
from diffulex_core.protocols import DiffusionModel
from diffulex_core.testing.reference import model

NO_END: Mapping[str, Any] = {
    **{name: value for name, value in model.TINY.items() if name != "eos_token_id"},
    "architectures": ["UnusualForMaskedLM"],
}
"""A config.json that names no end of text."""

OWN_NAMES: Mapping[str, Any] = {
    **{name: value for name, value in NO_END.items() if name not in ("vocab_size", "mask_token_id")},
    "words": 64,
}
"""A config.json that calls the size of the vocabulary something else and names no mask token."""


def by_own_names(config: Mapping[str, Any], ctx: BuildContext) -> DiffusionModel:
    """The network of `OWN_NAMES`; it looks its embeddings up without calling a module."""
    network: Any = model.build({**config, "vocab_size": config["words"]}, ctx)
    table: nn.Module = network.embed
    del network.embed
    network.table = table

    def embed(ids: Tensor) -> Tensor:
        weight: Any = table.weight
        return functional.embedding(ids, weight)

    object.__setattr__(network, "embed", embed)
    built: DiffusionModel = network
    return built
