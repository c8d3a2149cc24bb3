"""The kit's family: core's decoder, small, with grouped queries and an odd vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from diffulex_core.context import BuildContext
from diffulex_core.layers import DecoderSpec, build_decoder
from diffulex_core.protocols import DiffusionModel
from diffulex_core.weights import Rename, WeightRules

TINY: Mapping[str, Any] = MappingProxyType({
    "architectures": ["DiffulexKitForMaskedLM"], "vocab_size": 101, "width": 32, "layers": 2, "heads": 4,
    "kv_heads": 2, "ffn": 44, "mask_token_id": 100, "eos_token_id": 99,
})  # fmt: skip

WEIGHTS = WeightRules(
    Rename("embed.weight", "embed.weight"),
    Rename("layers.{i}.{q,k,v}.weight", "layers.{i}.attn.qkv.weight", shard="{q,k,v}"),
    Rename("layers.{i}.out.weight", "layers.{i}.attn.out.weight"),
    Rename("layers.{i}.{gate,up}.weight", "layers.{i}.mlp.gate_up.weight", shard="{gate,up}"),
    Rename("layers.{i}.down.weight", "layers.{i}.mlp.down.weight"),
    Rename("layers.{i}.{attn,ff}_norm.weight", "layers.{i}.{attn,ff}_norm.weight"),
    Rename("norm.weight", "final_norm.weight"),
    Rename("head.weight", "lm_head.weight"),
)


def build(config: Mapping[str, Any], ctx: BuildContext) -> DiffusionModel:
    """The decoder that a config.json of this family describes."""
    spec = DecoderSpec(
        vocab_size=config["vocab_size"],
        hidden_size=config["width"],
        num_layers=config["layers"],
        num_heads=config["heads"],
        num_kv_heads=config["kv_heads"],
        ffn_size=config["ffn"],
        rope_theta=10000.0,
    )
    return build_decoder(spec, ctx)
