"""The networks: the generic decoder, configured."""

from __future__ import annotations

from collections.abc import Mapping

from diffulex_core.context import BuildContext
from diffulex_core.layers import build_decoder
from diffulex_core.plugin import DiffusionModel
from diffulex_sdar.config import sdar_moe_spec, sdar_spec, stable_diffcoder_spec


def build_sdar(config: Mapping[str, object], ctx: BuildContext) -> DiffusionModel:
    """SDAR's decoder. Raises ConfigError as `sdar_spec` does."""
    return build_decoder(sdar_spec(config), ctx)


def build_sdar_moe(config: Mapping[str, object], ctx: BuildContext) -> DiffusionModel:
    """SDAR-MoE's decoder. Raises ConfigError as `sdar_moe_spec` does."""
    return build_decoder(sdar_moe_spec(config), ctx)


def build_stable_diffcoder(config: Mapping[str, object], ctx: BuildContext) -> DiffusionModel:
    """Stable-DiffCoder's decoder. Raises ConfigError as `stable_diffcoder_spec` does."""
    return build_decoder(stable_diffcoder_spec(config), ctx)
