"""The networks: the generic decoder, configured."""

from __future__ import annotations

from collections.abc import Mapping

from diffulex_core.context import BuildContext
from diffulex_core.layers import build_decoder
from diffulex_core.plugin import DiffusionModel
from diffulex_dream.config import dream_spec, reasoner_spec


def build_dream(config: Mapping[str, object], ctx: BuildContext) -> DiffusionModel:
    """Dream's decoder. Raises ConfigError as `dream_spec` does."""
    return build_decoder(dream_spec(config), ctx)


def build_reasoner(config: Mapping[str, object], ctx: BuildContext) -> DiffusionModel:
    """DreamReasoner's decoder. Raises ConfigError as `reasoner_spec` does."""
    return build_decoder(reasoner_spec(config), ctx)
