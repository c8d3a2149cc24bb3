"""The generic decoder and its parts. `DecoderSpec` is usable without torch; the parts are imported on use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffulex_core.layers.spec import DecoderSpec

if TYPE_CHECKING:
    from diffulex_core.context import BuildContext
    from diffulex_core.protocols import DiffusionModel

__all__ = ["DecoderSpec", "build_decoder"]


def build_decoder(spec: DecoderSpec, ctx: BuildContext) -> DiffusionModel:
    """A decoder with unwritten parameters of `ctx.dtype` on `ctx.device` (the meta device until weights are loaded)."""
    from diffulex_core.layers.decoder import Decoder  # families check configurations through this package without torch

    return Decoder(spec, ctx)
