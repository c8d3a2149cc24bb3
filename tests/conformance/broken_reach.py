"""Decoders that are right in short texts and small steps, and builders that do not read config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
from torch import Tensor

from diffulex_core.context import BuildContext, ForwardContext
from diffulex_core.layers.decoder import Decoder
from diffulex_core.layers.rope import Rope
from diffulex_core.testing.reference import model
from tests.conformance.broken_families import Build, Misled

NUMBERS: Mapping[str, Any] = {"rope_theta": 10000.0, "rms_norm_eps": 1e-5, "max_position_embeddings": 128}
"""What the kit's small config.json leaves out."""


class LosesTheRestOfItsPieces(Decoder):
    """Computes 256 rows at a time, and what is left of a small step."""

    def forward(self, input_ids: Tensor, positions: Tensor, ctx: ForwardContext) -> Tensor:
        hidden = super().forward(input_ids, positions, ctx)
        if len(hidden) > 256:
            hidden[len(hidden) // 256 * 256 :] = 0
        return hidden


class GivesWayInLargeSteps(Decoder):
    """From 512 rows on the last ones are computed from what the first ones were."""

    def forward(self, input_ids: Tensor, positions: Tensor, ctx: ForwardContext) -> Tensor:
        hidden = super().forward(input_ids, positions, ctx)
        if len(hidden) > 512:
            hidden[512:] += hidden[: len(hidden) - 512]
        return hidden


class TableOf500(Misled):
    """All positions from 499 on are one."""

    def positions(self, positions: Tensor, ctx: ForwardContext) -> Tensor:
        return positions.clamp(max=499)


class BeginsAnew(Misled):
    """Position 500 is position 0."""

    def positions(self, positions: Tensor, ctx: ForwardContext) -> Tensor:
        return positions % 500


class RoundsPositions(Misled):
    """Positions are numbers of the dtype that the network computes in."""

    def positions(self, positions: Tensor, ctx: ForwardContext) -> Tensor:
        return positions.to(self.embed.weight.dtype).long()


def tables_of_500(config: Mapping[str, Any], ctx: BuildContext) -> Decoder:
    """Raises behind a table whose size config.json does not say."""

    class RaisesBehindIts(Misled):
        def positions(self, positions: Tensor, ctx: ForwardContext) -> Tensor:
            if int(positions.max()) >= 500:
                raise IndexError("index out of range in self")
            return positions

    return RaisesBehindIts(_spec(config, ctx), ctx)


def reading(*keys: str) -> Build:
    """A builder that reads these keys of config.json and has the others built in."""

    def build(config: Mapping[str, Any], ctx: BuildContext) -> Decoder:
        built_in = {key: value for key, value in NUMBERS.items() if key not in keys}
        return Decoder(_spec({**config, **built_in}, ctx), ctx)

    return build


def one_table_for_all() -> Build:
    """A builder whose networks all rotate by the frequencies of the first one."""
    tables = dict[int, Rope]()

    def build(config: Mapping[str, Any], ctx: BuildContext) -> Decoder:
        network = Decoder(_spec(config, ctx), ctx)
        network.rope = tables.setdefault(network.rope.rotary_dim, network.rope)
        return network

    return build


def read(config: Mapping[str, Any], ctx: BuildContext) -> Decoder:
    """The kit's decoder with the numbers of config.json."""
    return Decoder(_spec(config, ctx), ctx)


def _spec(config: Mapping[str, Any], ctx: BuildContext) -> Any:
    sound = model.build(config, ctx)
    assert isinstance(sound, Decoder)
    return attrs.evolve(sound.spec, rope_theta=config["rope_theta"], norm_eps=config["rms_norm_eps"])
