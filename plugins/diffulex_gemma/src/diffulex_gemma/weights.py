"""Where DiffusionGemma's checkpoint tensors go.

Encoder and decoder share all weights but one scalar for each layer. A checkpoint may hold the decoder's copy (as
transformers writes it), the encoder's, or both, and the tied head besides; copies must be equal.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from diffulex_core.weights import LoadContext, Rename, ResolvedWeight, ShardId, Skip, WeightRules

COPIES = ("model.decoder.", "model.encoder.language_model.")
"""Prefixes of the shared weights."""

HEAD = "lm_head.weight"

_NORMS = (
    "{input_layernorm,post_attention_layernorm,pre_feedforward_layernorm,post_feedforward_layernorm,"
    "pre_feedforward_layernorm_2,post_feedforward_layernorm_1,post_feedforward_layernorm_2}"
)

_SHARED = WeightRules(
    Rename("embed_tokens.weight", "embed.weight"),
    Rename("norm.weight", "final_norm.weight"),
    Rename(HEAD, HEAD),
    Rename(f"layers.{{i}}.{_NORMS}.weight", f"layers.{{i}}.{_NORMS}.weight"),
    Rename("layers.{i}.self_attn.{q,k,v}_proj.weight", "layers.{i}.attn.qkv.weight", shard="{q,k,v}"),
    Rename("layers.{i}.self_attn.{q,k}_norm.weight", "layers.{i}.attn.{q,k}_norm.weight"),
    Rename("layers.{i}.self_attn.o_proj.weight", "layers.{i}.attn.out.weight"),
    Rename("layers.{i}.mlp.{gate,up}_proj.weight", "layers.{i}.mlp.gate_up.weight", shard="{gate,up}"),
    Rename("layers.{i}.mlp.down_proj.weight", "layers.{i}.mlp.down.weight"),
    Rename("layers.{i}.router.proj.weight", "layers.{i}.router.weight"),
    Rename("layers.{i}.router.{scale,per_expert_scale}", "layers.{i}.router.{scale,per_expert_scale}"),
    Rename("layers.{i}.experts.gate_up_proj", "layers.{i}.experts.w13"),
    Rename("layers.{i}.experts.down_proj", "layers.{i}.experts.w2"),
)
_WITHOUT_VALUES = WeightRules(
    Rename("layers.{i}.self_attn.{q,k}_proj.weight", "layers.{i}.attn.qk.weight", shard="{q,k}")
)
"""In full layers, which have no projection for values."""

_TEXT_ONLY = "only text is served"

_OWN = WeightRules(
    Rename("model.encoder.language_model.layers.{i}.layer_scalar", "layers.{i}.encoder_scalar"),
    Rename("model.decoder.layers.{i}.layer_scalar", "layers.{i}.decoder_scalar"),
    Rename("model.decoder.self_conditioning.pre_norm.weight", "self_conditioning.pre_norm.weight"),
    Rename(
        "model.decoder.self_conditioning.{gate,up}_proj.weight",
        "self_conditioning.mlp.gate_up.weight",
        shard="{gate,up}",
    ),
    Rename("model.decoder.self_conditioning.down_proj.weight", "self_conditioning.mlp.down.weight"),
    Skip("model.encoder.vision_tower.*", reason=_TEXT_ONLY),
    Skip("model.encoder.embed_vision.*", reason=_TEXT_ONLY),
)


@attrs.frozen
class GemmaWeights:
    """Shared weights under the prefix of either copy, everything else under its own name."""

    def resolve_checkpoint_weight(self, name: str, ctx: LoadContext) -> ResolvedWeight | None:
        """See `WeightResolver`."""
        prefix = next((prefix for prefix in COPIES if name.startswith(prefix)), "" if name == HEAD else None)
        if prefix is not None:
            below = name.removeprefix(prefix)
            for rules in (_SHARED, _WITHOUT_VALUES):
                found = rules.resolve_checkpoint_weight(below, ctx)
                if found is not None:
                    return attrs.evolve(found, copied=True)
        return _OWN.resolve_checkpoint_weight(name, ctx)

    def sources(self, target: str, shard_id: ShardId | None) -> Sequence[str]:
        """See `NamesSources`."""
        rules = (_SHARED, _WITHOUT_VALUES)
        shared = [name for table in rules for name in table.sources(target, shard_id) if name != HEAD]
        return [prefix + name for name in shared for prefix in COPIES] + [*_OWN.sources(target, shard_id)]


WEIGHTS = GemmaWeights()
