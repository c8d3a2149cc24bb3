"""Builders of a module that remembers what it computed for the first network of a process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from diffulex_core.context import BuildContext, ForwardContext
from diffulex_core.layers.decoder import Decoder
from diffulex_core.testing.reference import model
from tests.conformance.broken_reach import read

TABLES: dict[int, Any] = {}
EMBEDDED: dict[int, Tensor] = {}


def one_table_for_all(config: Mapping[str, Any], ctx: BuildContext) -> Decoder:
    """All networks rotate by the frequencies of the first one."""
    network = read(config, ctx)
    network.rope = TABLES.setdefault(network.rope.rotary_dim, network.rope)
    return network


def one_embedding_for_all(config: Mapping[str, Any], ctx: BuildContext) -> Decoder:
    """The mask token is embedded once and for all."""
    sound = model.build(config, ctx)
    assert isinstance(sound, Decoder)
    return Remembers(sound.spec, ctx)


class Remembers(Decoder):
    def forward(self, input_ids: Tensor, positions: Tensor, ctx: ForwardContext) -> Tensor:
        embed = self.embed.forward

        def remembered(ids: Tensor) -> Tensor:
            found, mask = embed(ids), self.spec.vocab_size - 1
            at = (ids == mask).nonzero()
            if len(at):
                found[ids == mask] = EMBEDDED.setdefault(mask, found[at[0, 0]].clone()).to(found.dtype)
            return found

        self.embed.forward = remembered  # type: ignore[method-assign]
        try:
            return super().forward(input_ids, positions, ctx)
        finally:
            self.embed.forward = embed  # type: ignore[method-assign]
