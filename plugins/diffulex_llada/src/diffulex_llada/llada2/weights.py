"""Where LLaDA2's checkpoint tensors go.

Queries, keys and values are stored as one matrix, one block of rows after another. Experts come one by one, or stacked
by the public converter, whose names end without `.weight`.
"""

from __future__ import annotations

from collections.abc import Sequence

from diffulex_core.weights import (
    ROTARY_TABLES,
    STANDARD_EXPERTS,
    LoadContext,
    Rename,
    ResolvedWeight,
    ShardId,
    WeightRules,
)
from diffulex_core.weights.rules import NamePattern

RULES = WeightRules(
    Rename("model.word_embeddings.weight", "embed.weight"),
    Rename("model.layers.{i}.input_layernorm.weight", "layers.{i}.attn_norm.weight"),
    Rename("model.layers.{i}.attention.query_key_value.{weight,bias}", "layers.{i}.attn.qkv.{weight,bias}"),
    Rename("model.layers.{i}.attention.query_layernorm.weight", "layers.{i}.attn.q_norm.weight"),
    Rename("model.layers.{i}.attention.key_layernorm.weight", "layers.{i}.attn.k_norm.weight"),
    Rename("model.layers.{i}.attention.dense.{weight,bias}", "layers.{i}.attn.out.{weight,bias}"),
    Rename("model.layers.{i}.post_attention_layernorm.weight", "layers.{i}.ff_norm.weight"),
    Rename("model.layers.{i}.mlp.{gate,up}_proj.weight", "layers.{i}.mlp.gate_up.weight", shard="{gate,up}"),
    Rename("model.layers.{i}.mlp.down_proj.weight", "layers.{i}.mlp.down.weight"),
    *STANDARD_EXPERTS,
    Rename("model.layers.{i}.mlp.gate.expert_bias", "layers.{i}.mlp.router.bias"),
    Rename("model.layers.{i}.mlp.gate.e_score_correction_bias", "layers.{i}.mlp.router.bias"),
    Rename(
        "model.layers.{i}.mlp.shared_experts.{gate,up}_proj.weight",
        "layers.{i}.mlp.shared.gate_up.weight",
        shard="{gate,up}",
    ),
    Rename("model.layers.{i}.mlp.shared_experts.down_proj.weight", "layers.{i}.mlp.shared.down.weight"),
    Rename("model.norm.weight", "final_norm.weight"),
    Rename("lm_head.weight", "lm_head.weight"),
    *ROTARY_TABLES,
)

_OF_LAYER = NamePattern("model.layers.{i}.*")
_PREDICTS_MORE = NamePattern("model.layers.{i}.{enorm,hnorm,eh_proj,final_layernorm}.weight")


class LLaDA2Weights:
    """The rules above, and the layers for multi-token prediction that config.json counts (num_nextn_predict_layers)."""

    def resolve_checkpoint_weight(self, name: str, ctx: LoadContext) -> ResolvedWeight | None:
        """See `WeightResolver`."""
        found = _OF_LAYER.match(name)
        if found is not None:
            layers, more = (ctx.config.get(key) for key in ("num_hidden_layers", "num_nextn_predict_layers"))
            beyond = int(found["i"]) - layers if isinstance(layers, int) else -1
            counted = isinstance(more, int) and beyond < more
            if beyond >= 0 and (counted or _PREDICTS_MORE.match(name) is not None):
                return ResolvedWeight(skip="layer for multi-token prediction; not used here")
        return RULES.resolve_checkpoint_weight(name, ctx)

    def sources(self, target: str, shard_id: ShardId | None) -> Sequence[str]:
        """See `NamesSources`."""
        return RULES.sources(target, shard_id)


WEIGHTS = LLaDA2Weights()
