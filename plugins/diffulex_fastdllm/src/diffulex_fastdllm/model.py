"""Fast-dLLM v2's network: the generic decoder, configured."""

from __future__ import annotations

from collections.abc import Mapping

from diffulex_core.context import BuildContext
from diffulex_core.layers import build_decoder
from diffulex_core.plugin import DiffusionModel
from diffulex_fastdllm.config import decoder_spec


def build(config: Mapping[str, object], ctx: BuildContext) -> DiffusionModel:
    """The decoder that a config.json describes. Raises ConfigError as `decoder_spec` does."""
    return build_decoder(decoder_spec(config), ctx)
